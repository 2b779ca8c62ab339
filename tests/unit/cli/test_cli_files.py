"""Where videos go: names, and what is in the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from worker.cli import out as places
from worker.cli.failures import CommandFailed
from worker.cli.out import Out, Place

VIDEO = bytes(range(256)) * 4000


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def parts() -> list[Path]:
    return list(Path().glob(".*.part"))


def test_a_name_is_the_place_of_one_video() -> None:
    place = Out.of("clip.mp4", force=False).place("job", 0, 1, ".mp4")
    assert place == Place(Path("clip.mp4"))
    assert (place.poster, place.frames) == (Path("clip.jpg"), Path("clip.zip"))


def test_several_videos_get_numbers() -> None:
    out = Out.of("clip.mp4", force=False)
    assert [out.place("job", index, 2, ".mp4").video.name for index in range(2)] == ["clip-0.mp4", "clip-1.mp4"]


def test_a_folder_gets_names_by_the_job(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for text in ("there", "there/", "new/"):
        out = Out.of(text, force=False)
        assert out.place("rp-1", 0, 1, ".mp4").video == Path(text) / "rp-1.mp4"
        assert out.place("rp-1", 1, 2, ".mp4").video == Path(text) / "rp-1-1.mp4"


@pytest.mark.parametrize("name", ["../../etc/x", "..", "a/b", "\x1b[2J", ""])
def test_a_name_from_elsewhere_stays_in_the_folder(name: str) -> None:
    place = Out.of("./", force=False).place(name, 0, 1, ".mp4")
    assert place.video.parent == Path()
    assert place.video.name.endswith(".mp4")
    assert place.video.name.isprintable()


@pytest.mark.parametrize("text", ["clip.mov", "clip", "missing/clip.mp4"])
def test_a_place_that_cannot_be_is_a_wrong_flag(text: str) -> None:
    with pytest.raises(CommandFailed, match="--out") as caught:
        Out.of(text, force=False)
    assert caught.value.status == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_a_wrong_flag(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(CommandFailed, match="nothing may be written"):
        Out.of("locked/", force=False)


@pytest.mark.parametrize("there", ["clip.mp4", "clip.jpg"])
def test_what_is_there_is_not_written_over(there: str) -> None:
    Path(there).write_bytes(b"mine")
    with pytest.raises(CommandFailed, match=rf"{there} is there already.*--force") as caught:
        Out.of("clip.mp4", force=False).check([".mp4"], posters=True)
    assert caught.value.status == 2
    Out.of("clip.mp4", force=True).check([".mp4"], posters=True)


def test_a_name_must_have_the_suffix_of_the_video() -> None:
    with pytest.raises(CommandFailed, match=r"--out: the video is a \.webm file") as caught:
        Out.of("clip.mp4", force=True).check([".webm"], posters=True)
    assert caught.value.status == 2
    Out.of("clip.webm", force=True).check([".webm"], posters=True)
    Out.of("./", force=True).check([".webm"], posters=True)


@pytest.mark.parametrize(
    ("url", "suffix"),
    [
        ("https://a.test/0.webm?X-Signature=1.gif", ".webm"),
        ("file:///there/0.gif", ".gif"),
        ("https://a.test/0.exe", ".mp4"),
        ("https://a.test/", ".mp4"),
    ],
)
def test_the_suffix_of_a_video_is_that_of_its_address_where_it_is_a_videos(url: str, suffix: str) -> None:
    assert places.suffix_of(url) == suffix


def test_a_poster_that_will_not_be_made_is_in_nobodys_way() -> None:
    Path("clip.jpg").write_bytes(b"mine")
    Out.of("clip.mp4", force=False).check([".mp4"], posters=False)


def test_a_copy_is_whole_or_not_there(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(VIDEO)
    places.copy(source, Path("clip.mp4"), force=False)
    assert Path("clip.mp4").read_bytes() == VIDEO
    with pytest.raises(FileExistsError):
        places.copy(source, Path("clip.mp4"), force=False)
    source.write_bytes(b"new")
    places.copy(source, Path("clip.mp4"), force=True)
    assert Path("clip.mp4").read_bytes() == b"new"
    with pytest.raises(FileNotFoundError):
        places.copy(tmp_path / "missing", Path("other.mp4"), force=False)
    assert not Path("other.mp4").exists()
    assert parts() == []
