"""The files of a data set: a ZIP of a stranger's, unpacked in bounds, or a folder of the operator's.

Nothing of a ZIP is written under a name of its own, and all that its directory says is checked before a byte is
unpacked. Everything that is wrong with it is an InputInvalid that names the file and what to do.
"""

from __future__ import annotations

import io
import os
import re
import stat
import threading
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from worker.base.errors import InputInvalid
from worker.base.settings import Settings
from worker.net import Opener
from worker.net.opener import TRAINING_LIMITS

DATA_PATH = "train.training_data_url"
MAX_FILES = 4_000
MAX_UNPACKED_BYTES = 10_000_000_000
MAX_DIRECTORY_BYTES = 2_000_000  # what zipfile reads at once; 4,000 entries of 300 bytes have 1.4 MB
MAX_RATIO = 200
SMALL_BYTES = 1_000_000  # text and blank pictures of this size may have any ratio
MAX_DEPTH = 8
MAX_NAME_CHARACTERS = 255
_BLOCK_BYTES = 65_536
_UTF8 = 0x800
_ENCRYPTED = 0x1 | 0x40 | 0x2000  # APPNOTE 4.4.4: encrypted, strongly so, with a masked directory
_ARCHIVES = (".zip", ".7z", ".rar", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst")
# What systems put into every folder.
_OF_SYSTEMS = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
# All that zipfile and zlib raise for bytes that are damaged.
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, OverflowError, LookupError, RuntimeError),
    *(NotImplementedError, zipfile.LargeZipFile, TypeError),
)


class Files(Protocol):
    """`sizes` has the bytes of each file, by its path inside."""

    @property
    def sizes(self) -> Mapping[str, int]: ...

    def at(self, name: str, spare: Path) -> Path:
        """Where the file's bytes are: `spare`, which is then replaced, or the file itself. Raises InputInvalid."""


def fetch_archive(url: str, target: Path, *, opener: Opener, settings: Settings, stop: threading.Event) -> str:
    """Write the ZIP behind an http(s) URL, of TRAINING_MAX_BYTES at most, to `target`. Returns its SHA-256 in hex.

    Raises InputBlocked, InputFailed, InvalidRequest and Cancelled, as `Opener.read` does.
    """
    limits = replace(TRAINING_LIMITS, max_bytes=settings.training_max_bytes)
    return opener.download(url, target, limits=limits, path=DATA_PATH, stop=stop)


@contextmanager
def files_in(archive_or_folder: Path) -> Iterator[Files]:
    """The files of a ZIP or a folder, without hidden ones. Raises InputInvalid, and OSError where there is neither."""
    if archive_or_folder.is_dir():
        yield _folder(archive_or_folder)
        return
    with _Careful(archive_or_folder) as opened, _zip(opened) as archive:
        yield Unpacked(archive, _checked(archive, archive_or_folder.stat().st_size))


def refusal(message: str) -> InputInvalid:
    """The error of a data set."""
    return InputInvalid(message, path=DATA_PATH)


def shown(name: str) -> str:
    """A name of a stranger's, as messages show it."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in name[:80])
    return f"{plain}..." if len(name) > 80 else plain


@dataclass(frozen=True, slots=True)
class Folder:
    """Files of a folder, by their paths inside."""

    root: Path
    sizes: Mapping[str, int]

    def at(self, name: str, spare: Path) -> Path:  # noqa: ARG002 - nothing to unpack
        return self.root / name


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Files of a ZIP whose directory was checked."""

    archive: zipfile.ZipFile
    entries: Mapping[str, zipfile.ZipInfo]

    @property
    def sizes(self) -> Mapping[str, int]:
        return {name: entry.file_size for name, entry in self.entries.items()}

    def at(self, name: str, spare: Path) -> Path:
        written = 0
        with spare.open("wb") as file:
            for block in self._blocks(name):
                file.write(block)
                written += len(block)
        if written != self.entries[name].file_size:
            raise _damaged(name)
        return spare

    def _blocks(self, name: str) -> Iterator[bytes]:
        try:
            with self.archive.open(self.entries[name]) as packed:
                while block := packed.read(_BLOCK_BYTES):
                    yield block
        except _DAMAGED as failure:
            raise _damaged(name) from failure


class _Careful(io.FileIO):
    """A file of which nobody reads more at once than the directory of a ZIP may have."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise refusal(f"the ZIP lists too many files, or too long names: send at most {MAX_FILES:,} files")
        return super().read(size) or b""


def _folder(root: Path) -> Folder:
    sizes = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            inside = path.relative_to(root).as_posix()
            if path.is_file() and not _is_of_system(inside):
                sizes[inside] = path.stat().st_size
    if len(sizes) > MAX_FILES:
        raise refusal(f"the folder has {len(sizes):,} files: send at most {MAX_FILES:,}")
    return Folder(root, sizes)


@contextmanager
def _zip(opened: _Careful) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(opened)
    except _DAMAGED as failure:
        opened.seek(0)
        if opened.read(2) == b"PK":
            raise refusal("the ZIP is damaged or cut off: make it again, and see that it opens") from failure
        raise refusal("not a ZIP: send the videos, pictures and captions in one ZIP file") from failure
    with archive:
        yield archive


def _checked(archive: zipfile.ZipFile, size_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """The entries of the files, by their names. Raises InputInvalid for the first that may not be there."""
    infos = archive.infolist()
    if len(infos) > MAX_FILES:
        raise refusal(f"the ZIP has {len(infos):,} files: send at most {MAX_FILES:,}")
    unpacked_bytes = sum(info.file_size for info in infos)
    if unpacked_bytes > MAX_UNPACKED_BYTES:
        raise refusal(
            f"the ZIP has {unpacked_bytes / 1e9:.1f} GB unpacked: send at most {MAX_UNPACKED_BYTES / 1e9:.0f} GB"
        )
    if sum(info.compress_size for info in infos) > size_bytes:
        raise refusal("the ZIP lists more bytes than it has: make it again with an ordinary program")
    entries: dict[str, zipfile.ZipInfo] = {}
    seen: dict[str, str] = {}
    for info in infos:
        name = _name(info)
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if (reason := _reason(info, name, parts)) is not None:
            raise refusal(f"{shown(name)} {reason}")
        if name.endswith("/") or not parts:
            continue
        inside = "/".join(parts)
        alike = unicodedata.normalize("NFC", inside).casefold()
        if (other := seen.setdefault(alike, inside)) != inside or inside in entries:
            same = f"and {shown(other)} differ in case alone" if other != inside else "is in the ZIP twice"
            raise refusal(f"{shown(inside)} {same}: give each file a name of its own")
        entries[inside] = info
    return {name: info for name, info in entries.items() if not _is_of_system(name)}


def _name(info: zipfile.ZipInfo) -> str:
    """The name as it was meant: Windows writes backslashes, macOS UTF-8 without the flag that says so."""
    name = info.orig_filename  # `filename` is cut at a NUL
    if not info.flag_bits & _UTF8:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name.replace("\\", "/")


def _reason(info: zipfile.ZipInfo, name: str, parts: list[str]) -> str | None:
    """Why an entry may not be there, and what to do about it; None where it may."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    rules: tuple[tuple[Any, str], ...] = (
        (any(ord(letter) < 32 or ord(letter) == 127 for letter in name), "has control characters: rename it"),
        (len(name) > MAX_NAME_CHARACTERS, f"has more than {MAX_NAME_CHARACTERS} characters in its path: shorten it"),
        (name.startswith("/") or re.match("[A-Za-z]:", name), "has an absolute path: pack it with a relative one"),
        (".." in parts, "leads out of the ZIP: pack it without '..'"),
        (len(parts) > MAX_DEPTH, f"is more than {MAX_DEPTH} folders deep: pack it in fewer"),
        (kind not in (0, stat.S_IFREG, stat.S_IFDIR), "is a link or a device: pack the file itself"),
        (info.flag_bits & _ENCRYPTED, "is encrypted: pack it without a password"),
        (
            info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED),
            "is packed by a rare method: use a program's ordinary ZIP (deflate)",
        ),
        (name.lower().endswith(_ARCHIVES), "is an archive inside the ZIP: put its files there instead"),
        (
            info.file_size > max(SMALL_BYTES, MAX_RATIO * info.compress_size),
            f"is more than {MAX_RATIO} times as large unpacked: send real videos and pictures",
        ),
    )
    return next((reason for broken, reason in rules if broken), None)


def _is_of_system(name: str) -> bool:
    return any(part.startswith(".") or part.lower() in _OF_SYSTEMS for part in name.split("/"))


def _damaged(name: str) -> InputInvalid:
    return refusal(f"{shown(name)} is damaged in the ZIP: make the ZIP again, and see that it opens")
