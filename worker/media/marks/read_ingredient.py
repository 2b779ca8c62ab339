"""Reads what C2PA keeps of one untrusted file; runs as a process of its own, as `decode_image.py` does.

    python -I -S read_ingredient.py SITE_PACKAGES DESCRIBED < file > archive

Input: the file; DESCRIBED is the ingredient without it, as JSON. Output: the ingredient as an archive of C2PA, with the
file's own manifest if it has one; nothing where the file cannot be read. It imports nothing of the worker and is run by
its path.
"""

from __future__ import annotations

import io
import json
import sys

OFFLINE = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
}
# How files begin that may hold a manifest; the library wants the name of what it reads.
_BEGINNINGS = (
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"\x89PNG", "image/png"),
    (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (4, b"ftypavif", "image/avif"),
    (4, b"ftyphei", "image/heic"),
    (4, b"ftypmif1", "image/heif"),
    (0, b"II*\0", "image/tiff"),
    (0, b"MM\0*", "image/tiff"),
    (4, b"ftyp", "video/mp4"),
)
_HEAD_BYTES = 16


def content_type(head: bytes) -> str | None:
    found = (kind for start, begins, kind in _BEGINNINGS if head[start:].startswith(begins))
    return next(found, None)


def main() -> None:
    site_packages, described = sys.argv[1], json.loads(sys.argv[2])
    sys.path.append(site_packages)
    from c2pa import Builder, Context, Settings

    given, archive = sys.stdin.buffer, io.BytesIO()
    kind = content_type(given.read(_HEAD_BYTES))
    given.seek(0)
    context = Context(settings=Settings.from_dict(OFFLINE))
    with Builder({}, context=context) as builder:
        builder.add_ingredient(described, kind, given)
        builder.write_ingredient_archive(described["label"], archive)
    sys.stdout.buffer.write(archive.getvalue())


if __name__ == "__main__":
    main()
