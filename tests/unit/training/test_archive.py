"""A ZIP of a stranger's: what is in it, at the bounds of what may be, and read a byte at a time where it is large."""

from __future__ import annotations

import hashlib
import io
import random
import stat
import threading
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from tests.kits.loopback import Server, answering, response
from tests.kits.training_kit import FLAGS, LOCAL, UNPACKED, patched, picture, zipped
from worker.base.errors import InputBlocked, InputFailed, InputInvalid
from worker.base.settings import Settings
from worker.net import Opener
from worker.training import archive
from worker.training.archive import fetch_archive, files_in


def names_in(data: bytes, folder: Path) -> list[str]:
    file = folder / "set.zip"
    file.write_bytes(data)
    with files_in(file) as files:
        return list(files.sizes)


def refusal(data: bytes, folder: Path) -> str:
    with pytest.raises(InputInvalid) as caught:
        names_in(data, folder)
    assert caught.value.path == "train.training_data_url"
    return caught.value.message


def test_files_are_unpacked_one_at_a_time(tmp_path: Path) -> None:
    content = {"a.png": picture(), "sub/b.txt": "a red field" * 50}
    (tmp_path / "set.zip").write_bytes(zipped(content))
    spare = tmp_path / "spare"
    with files_in(tmp_path / "set.zip") as files:
        assert files.sizes == {"a.png": len(picture()), "sub/b.txt": 550}
        assert files.at("a.png", spare).read_bytes() == picture()
        assert files.at("sub/b.txt", spare).read_text() == "a red field" * 50


def test_a_folder_has_the_same_files(tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.txt", ".hidden", "__MACOSX/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture())
    with files_in(tmp_path) as files:
        assert files.sizes == {"a.png": len(picture()), "sub/b.txt": len(picture())}
        assert files.at("sub/b.txt", tmp_path / "spare").read_bytes() == picture()


def test_what_systems_add_is_passed_over(tmp_path: Path) -> None:
    names = ["a.png", "__MACOSX/._a.png", ".DS_Store", "Thumbs.db", "sub/desktop.ini", "sub/.git/config"]
    assert names_in(zipped(dict.fromkeys(names, b"x")), tmp_path) == ["a.png"]


def test_paths_of_windows_and_of_the_current_folder_are_plain_ones(tmp_path: Path) -> None:
    data = zipped({"sub_a.png": b"x", "./b.png": b"x", "c//d.png": b"x"}).replace(b"sub_a", b"sub\\a")
    assert names_in(data, tmp_path) == ["sub/a.png", "b.png", "c/d.png"]


def test_names_in_utf8_are_read_without_the_flag_that_says_so(tmp_path: Path) -> None:
    """As the Finder of macOS writes them; what is no UTF-8 stays in the code page of ZIP."""
    named = zipped({"é.png": b"x"})
    (tmp_path / "set.zip").write_bytes(patched(patched(named, FLAGS, 0), 6, 0, where=LOCAL))
    with files_in(tmp_path / "set.zip") as files:
        assert list(files.sizes) == ["é.png"]
        assert files.at("é.png", tmp_path / "spare").read_bytes() == b"x"
    dos = zipped({"Q.png": b"x"}).replace(b"Q.png", b"\x82.png")
    assert names_in(dos, tmp_path) == ["é.png"]


@pytest.mark.parametrize(
    ("allowed", "beyond", "words"),
    [
        ("n" * 251 + ".png", "n" * 252 + ".png", "more than 255 characters in its path: shorten it"),
        ("a/" * 7 + "a.png", "a/" * 8 + "a.png", "more than 8 folders deep"),
    ],
)
def test_bounds_of_names(allowed: str, beyond: str, words: str, tmp_path: Path) -> None:
    assert names_in(zipped({allowed: b"x"}), tmp_path) == [allowed]
    assert words in refusal(zipped({beyond: b"x"}), tmp_path)


def test_bounds_of_counts_and_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = zipped({"a.png": b"x" * 100, "b.png": b"x" * 100})
    for limit, value, words in (("MAX_FILES", 2, "has 2 files"), ("MAX_UNPACKED_BYTES", 200, "GB unpacked")):
        monkeypatch.setattr(archive, limit, value)
        assert len(names_in(two, tmp_path)) == 2
        monkeypatch.setattr(archive, limit, value - 1)
        assert words in refusal(two, tmp_path)
        monkeypatch.undo()


def test_bounds_of_the_ratio(tmp_path: Path) -> None:
    """A small file may be all zeros; a large one may not."""
    assert names_in(zipped({"a.txt": b"\0" * archive.SMALL_BYTES}), tmp_path) == ["a.txt"]
    assert "200 times as large" in refusal(zipped({"a.txt": b"\0" * (archive.SMALL_BYTES + 1)}), tmp_path)
    entry = zipped({"a.mp4": b"x" * 10_000}, zipfile.ZIP_STORED)
    assert names_in(patched(entry, UNPACKED, 2_000_000, "<I"), tmp_path) == ["a.mp4"]
    assert "200 times as large" in refusal(patched(entry, UNPACKED, 2_000_001, "<I"), tmp_path)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices(kind: int, tmp_path: Path) -> None:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as packed:
        entry = zipfile.ZipInfo("a.png")
        entry.external_attr = (kind | 0o644) << 16
        packed.writestr(entry, "/etc/passwd")
    assert refusal(written.getvalue(), tmp_path) == "a.png is a link or a device: pack the file itself"


def test_a_long_or_odd_name_is_shortened_in_messages(tmp_path: Path) -> None:
    message = refusal(zipped({"../" + "\x07" * 100: b"x"}), tmp_path)
    assert message.startswith("../?????")
    assert len(message) < 160


def test_random_damage_is_a_typed_error_or_harmless(tmp_path: Path) -> None:
    """100 ZIPs with a few changed bytes each: unpacked, or an InputInvalid."""
    draw = random.Random(5)
    whole = zipped({"a.png": picture(), "b.txt": "a field" * 30, "sub/c.mp4": draw.randbytes(500)})
    file, outcomes = tmp_path / "set.zip", set()
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 6)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        file.write_bytes(damaged[: draw.randint(1, len(damaged))] if draw.random() < 0.2 else damaged)
        try:
            with files_in(file) as files:
                for name in files.sizes:
                    files.at(name, tmp_path / "spare")
            outcomes.add("unpacked")
        except InputInvalid as refused:
            outcomes.add(str(refused.path))
    assert outcomes == {"unpacked", "train.training_data_url"}


def test_a_large_file_takes_a_buffer_of_memory(tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(zipped({"a.mp4": random.Random(1).randbytes(20_000_000)}, zipfile.ZIP_STORED))
    tracemalloc.start()
    try:
        with files_in(tmp_path / "set.zip") as files:
            files.at("a.mp4", tmp_path / "spare")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


def test_the_archive_is_fetched_in_bounds(tmp_path: Path) -> None:
    data, file, stop = zipped({"a.png": picture()}), tmp_path / "set.zip", threading.Event()
    whole, less = (Settings(training_max_bytes=most) for most in (len(data), len(data) - 1))
    with Server(answering(response(data))) as server:
        opener = Opener(("127.0.0.1",))
        digest = fetch_archive(server.url(), file, opener=opener, settings=whole, stop=stop)
        assert digest == hashlib.sha256(data).hexdigest()
        assert file.read_bytes() == data
        with pytest.raises(InputFailed) as caught:
            fetch_archive(server.url(), file, opener=opener, settings=less, stop=stop)
        assert caught.value.path == "train.training_data_url"
    with pytest.raises(InputBlocked):
        fetch_archive(server.url(), file, opener=Opener(), settings=whole, stop=stop)
