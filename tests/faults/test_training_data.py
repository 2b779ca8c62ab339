"""No data set, however it is made, ends the worker: each is a typed error that names the file and what to do.

The table has archives that do harm; what is merely unusable is left out and reported (tests/unit/training).
"""

from __future__ import annotations

import io
import stat
import struct
import tarfile
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kits.loopback import takes_at_most
from tests.kits.training_kit import (
    ATTRIBUTES,
    CENTRAL,
    CRC,
    END,
    FLAGS,
    LOCAL,
    METHOD,
    PACKED,
    UNPACKED,
    movie,
    patched,
    picture,
    small_set,
    training_request,
    zipped,
)
from worker.base.errors import InputInvalid
from worker.training.dataset import read_dataset

STORED = zipfile.ZIP_STORED


def with_name(name: str) -> bytes:
    return zipped(small_set(**{name: picture()}))


def plain() -> bytes:
    return zipped(small_set(), STORED)


def named(first: str, second: str) -> bytes:
    """Two files, the second of which has its name changed after packing: zipfile warns of what it can see."""
    return zipped({first: picture(), "X" * len(second): picture()}).replace(b"X" * len(second), second.encode())


def with_mode(mode: int) -> bytes:
    return patched(plain(), ATTRIBUTES, mode << 16, "<I")


def with_a_zip64_size(size_bytes: int) -> bytes:
    """A directory that has a size of 64 bits for a small file (APPNOTE 4.5.3)."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        entry = zipfile.ZipInfo("a.mp4")
        entry.extra = struct.pack("<HHQ", 1, 8, size_bytes)
        archive.writestr(entry, b"x" * 1_000)
    return patched(written.getvalue(), UNPACKED, 0xFFFFFFFF, "<I")


def overlapping() -> bytes:
    """Two entries of one body: what is unpacked grows, and what is packed does not."""
    data = zipped({"a.png": bytes(range(256)) * 40}, STORED)
    start, end = data.index(CENTRAL), data.index(END)
    entry = data[start:end]
    other = entry.replace(b"a.png", b"b.png")
    tail = bytearray(data[end:])
    struct.pack_into("<HHI", tail, 8, 2, 2, len(entry) * 2)
    return data[:start] + entry + other + bytes(tail)


def with_a_huge_directory() -> bytes:
    data = plain()
    start, end = data.index(CENTRAL), data.index(END)
    entry = data[start : data.index(CENTRAL, start + 4)]
    count = 2_100_000 // len(entry)
    tail = bytearray(data[end:])
    struct.pack_into("<HHI", tail, 8, count, count, len(entry) * count)
    return data[:start] + entry * count + bytes(tail)


def tarred() -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    return written.getvalue()


def damaged_body() -> bytes:
    data = bytearray(plain())
    data[data.index(b"IHDR") + 5] ^= 0xFF
    return bytes(data)


HARMFUL: dict[str, tuple[Callable[[], bytes], str]] = {
    "an empty file": (lambda: b"", "not a ZIP"),
    "text": (lambda: b"hello", "not a ZIP"),
    "a tar": (tarred, "not a ZIP"),
    "a video": (movie, "not a ZIP"),
    "a ZIP without files": (lambda: zipped({}), "nothing of the set can be used. It has no files"),
    "folders alone": (lambda: zipped({"a/": b"", "a/b/": b""}), "It has no files"),
    "cut off in the directory": (lambda: plain()[:-30], "damaged or cut off"),
    "cut off in a file": (lambda: plain()[:80], "damaged or cut off"),
    "a wrong checksum": (lambda: patched(plain(), CRC, 5, "<I"), "a.png is damaged in the ZIP"),
    "a changed body": (damaged_body, "a.png is damaged in the ZIP"),
    "another file at its place": (lambda: patched(plain(), 30, ord("z"), "<B", where=LOCAL), "a.png is damaged"),
    "a size that is too small": (lambda: patched(plain(), UNPACKED, 3, "<I"), "a.png is damaged in the ZIP"),
    "a size that is too large": (lambda: patched(plain(), UNPACKED, 5_000, "<I"), "a.png is damaged in the ZIP"),
    "a packed size beyond the file": (lambda: patched(plain(), PACKED, 10**6, "<I"), "lists more bytes than it has"),
    "an absurd size of 64 bits": (lambda: with_a_zip64_size(2**62), "GB unpacked: send at most 10 GB"),
    "a large size of 64 bits": (lambda: with_a_zip64_size(4 * 10**9), "more than 200 times as large unpacked"),
    "entries that overlap": (overlapping, "lists more bytes than it has"),
    "a bomb": (lambda: zipped({"a.txt": b"\0" * 3_000_000}), "a.txt is more than 200 times as large unpacked"),
    "a directory of megabytes": (with_a_huge_directory, "lists too many files"),
    "5,000 files": (lambda: zipped({f"{number}.txt": b"" for number in range(5_000)}, STORED), "has 5,000 files"),
    "a path out of it": (lambda: with_name("a/../../b.png"), "leads out of the ZIP"),
    "an absolute path": (lambda: with_name("/etc/b.png"), "has an absolute path"),
    "a drive of Windows": (lambda: with_name("C:\\b.png"), "has an absolute path"),
    "a NUL in a name": (lambda: with_name("bQ.png").replace(b"bQ.png", b"b\0.png"), "has control characters"),
    "a name of 300 characters": (lambda: with_name("b" * 300 + ".png"), "shorten it"),
    "twelve folders deep": (lambda: with_name("b/" * 12 + "b.png"), "more than 8 folders deep"),
    "a name twice": (lambda: named("b.png", "b.png"), "is in the ZIP twice"),
    "names that differ in case": (lambda: named("b.png", "B.PNG"), "differ in case alone"),
    "a link": (lambda: with_mode(stat.S_IFLNK | 0o777), "a.png is a link or a device"),
    "a device": (lambda: with_mode(stat.S_IFBLK | 0o600), "a.png is a link or a device"),
    "encrypted": (lambda: patched(plain(), FLAGS, 1), "a.png is encrypted"),
    "packed by LZMA": (lambda: zipped(small_set(), zipfile.ZIP_LZMA), "a.png is packed by a rare method"),
    "packed by an unknown method": (lambda: patched(plain(), METHOD, 77), "a.png is packed by a rare method"),
    "a ZIP in the ZIP": (lambda: with_name("more.zip"), "more.zip is an archive inside the ZIP"),
    "a name that is no UTF-8": (lambda: patched(zipped({"ä.png": b""}), 46, 0xFF, "<B"), "damaged or cut off"),
    "nothing with a caption": (lambda: zipped({"a.png": picture(), "b.mp4": movie()}), "a.png: has no caption"),
    "pictures that are none": (lambda: zipped({"a.png": b"x", "a.txt": "a"}), "a.png: not an image that can be read"),
    "videos that are none": (lambda: zipped({"a.mp4": movie()[:40], "a.txt": "a"}), "a.mp4: not a video that can be"),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_a_data_set_that_cannot_be_used_is_a_typed_error(name: str, tmp_path: Path) -> None:
    make, words = HARMFUL[name]
    file, into = tmp_path / "set.zip", tmp_path / "clips"
    file.write_bytes(make())
    into.mkdir()
    tracemalloc.start()
    before_s = time.process_time()
    try:
        with takes_at_most(10), pytest.raises(InputInvalid) as caught:
            read_dataset(file, into, training_request(), stop=threading.Event())
        used_s, peak_bytes = time.process_time() - before_s, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert used_s < 1
    assert caught.value.path == "train.training_data_url"
    assert words in caught.value.message
    assert peak_bytes < 12_000_000
    assert str(tmp_path) not in caught.value.message
    assert list(into.iterdir()) == [] or [path.name for path in into.iterdir()] == ["unpacked"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "set.zip"]


def test_there_are_enough_of_them() -> None:
    assert len(HARMFUL) >= 30
