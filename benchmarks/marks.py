"""What the marks of AI origin cost: bytes and milliseconds of each format, without and with a key and a time stamp.

    python -m benchmarks.marks
    python -m benchmarks.marks --videos 200

The second signs as many videos, each with a picture of its own, and verifies them against the root of the authority
that it makes for itself. A local RFC 3161 authority (`openssl ts`) gives the time stamps.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from tests.kits.c2pa_kit import Authority
from worker.media import FORMATS
from worker.media.encode import encode
from worker.media.marks import reading
from worker.media.marks.marker import Marker
from worker.media.marks.provenance import Origin
from worker.media.marks.signing import SigningKey
from worker.request.settle import CODECS
from worker.request.values import Output

WIDTH, HEIGHT, FRAMES, FPS = 832, 480, 81, 16
TRIES = 5
MODEL = "wan2.2-t2v-a14b"


def clip(seed: int = 0, width: int = WIDTH, height: int = HEIGHT, count: int = FRAMES) -> Iterator[np.ndarray]:
    """Moving bands of few colours, which a GIF takes quickly; each `seed` begins elsewhere."""
    rows, columns = np.mgrid[0:height, 0:width]
    for number in range(count):
        waves = [rows + number * 3 + seed, columns - number * 2, rows + columns]
        yield (np.stack(waves, axis=2) % 256 // 64 * 64).astype(np.uint8)


def costs(folder: Path, marker: Marker, path: Path, content_type: str) -> tuple[int, float]:
    """By how many bytes a copy of `path` grows, and the median of the milliseconds."""
    taken = []
    copy = folder / f"copy{path.suffix}"
    for _ in range(TRIES):
        shutil.copy(path, copy)
        began = time.perf_counter()
        marker.mark_file(copy, content_type, Origin(MODEL))
        taken.append(1000 * (time.perf_counter() - began))
    return copy.stat().st_size - path.stat().st_size, statistics.median(taken)


def table(folder: Path, markers: dict[str, Marker]) -> None:
    print(f"| {WIDTH}x{HEIGHT}, {FRAMES} frames | bytes | " + " | ".join(markers) + " |")
    print("| --- | --- |" + " --- |" * len(markers))
    for name, codecs in CODECS.items():
        for codec in codecs:
            path = folder / f"{codec}{FORMATS[name].suffix}"
            beside = (
                {"poster": folder / "0.jpg", "frames_zip": folder / "0.zip"} if codec == "h264" else {"poster": None}
            )
            output = Output(format=name, codec=codec)
            encode(clip(), path=path, width=WIDTH, height=HEIGHT, num_frames=FRAMES, fps=FPS, output=output, **beside)
            row(folder, markers, f"{name}, {codec}", path, FORMATS[name].content_type)
    row(folder, markers, "poster", folder / "0.jpg", "image/jpeg")
    row(folder, markers, "ZIP of frames", folder / "0.zip", "application/zip")


def row(folder: Path, markers: dict[str, Marker], label: str, path: Path, content_type: str) -> None:
    cells = []
    for marker in markers.values():
        grown, took = costs(folder, marker, path, content_type)
        cells.append(f"+{grown:,} B, {took:.0f} ms")
    print(f"| {label} | {path.stat().st_size:,} | " + " | ".join(cells) + " |", flush=True)


def verified(folder: Path, marker: Marker, root: str, count: int) -> Counter[str]:
    """The states of `count` small videos that were each signed, and changed by one byte."""
    found: Counter[str] = Counter()
    for seed in range(count):
        path = folder / f"{seed}.mp4"
        encode(clip(seed, 128, 128, 9), path=path, width=128, height=128, num_frames=9, fps=FPS, poster=None)
        marker.mark_file(path, "video/mp4", Origin(MODEL))
        marks = reading.read(path, trust_anchors=root)
        found[marks.state + (", with a time stamp" if marks.signed_at else "")] += 1
        content = bytearray(path.read_bytes())
        media = content.index(b"mdat")
        content[media + 4 + seed * 7919 % (len(content) - media - 4)] ^= 1
        path.write_bytes(content)
        found["one byte of the media: " + reading.read(path).state] += 1
        path.unlink()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, metavar="N", help="sign and verify N videos in place of the table")
    chosen = parser.parse_args()
    authority = Authority()
    signer = authority.issue()
    key = SigningKey.load(signer.chain, signer.key)
    with ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory()))
        url = ends.enter_context(authority.time_stamps())
        stamped = Marker(key=key, tsa_url=url)
        if chosen.videos is None:
            table(folder, {"metadata": Marker(), "signed": Marker(key=key), "signed, time stamp": stamped})
            return
        for state, count in verified(folder, stamped, authority.root, chosen.videos).items():
            print(f"{count} of {chosen.videos}: {state}")


if __name__ == "__main__":
    main()
