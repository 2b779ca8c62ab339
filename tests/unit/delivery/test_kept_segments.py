"""Finished segments come back whole for the same job alone, and within bounds."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from worker.base.files import StateFolder
from worker.delivery.journal import Entry
from worker.delivery.kept_segments import KeptSegments, Segment

SEGMENT = Segment(seed=1, prompt="a cat", num_frames=5, seam=None, lab=(1, 2, 3), parameters={}, warnings=())


def entry(job_id: str = "abc", digest: str = "d") -> Entry:
    return Entry(job_id=job_id, payload_digest=digest, accepted_on=date(2026, 1, 1), accepted_at=0.0, seeds=(1,))


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    (tmp_path / "0.frames").write_bytes(bytes(1000))
    return tmp_path / "0.frames"


def kept_in(folder: Path, max_bytes: int = 10_000) -> KeptSegments:
    return KeptSegments(StateFolder(folder / "state"), max_bytes=max_bytes)


def test_another_worker_finds_the_segment_and_its_frames(tmp_path: Path, frames: Path) -> None:
    segment = SEGMENT.model_copy(update={"tail": bytes(range(256))})
    kept_in(tmp_path).keep(entry(), 0, 1, segment, frames)
    assert kept_in(tmp_path).restore(entry(), 0, 1, tmp_path / "again") == segment
    assert (tmp_path / "again").read_bytes() == frames.read_bytes()


@pytest.mark.parametrize(
    ("asked", "index", "number"), [(entry("abd"), 0, 1), (entry(digest="e"), 0, 1), (entry(), 1, 1), (entry(), 0, 0)]
)
def test_no_other_job_video_or_segment_gets_it(
    tmp_path: Path, frames: Path, asked: Entry, index: int, number: int
) -> None:
    kept = kept_in(tmp_path)
    kept.keep(entry(), 0, 1, SEGMENT, frames)
    assert kept.restore(asked, index, number, tmp_path / "again") is None


@pytest.mark.parametrize("suffix", [".frames", ".json"])
def test_a_damaged_one_counts_as_absent(tmp_path: Path, frames: Path, suffix: str) -> None:
    kept = kept_in(tmp_path)
    kept.keep(entry(), 0, 1, SEGMENT, frames)
    (place,) = (tmp_path / "state").rglob(f"*{suffix}")
    place.write_bytes(place.read_bytes()[:-1] + b"!")
    assert kept.restore(entry(), 0, 1, tmp_path / "again") is None


def test_what_is_needed_no_more_is_removed(tmp_path: Path, frames: Path) -> None:
    kept = kept_in(tmp_path)
    for index in (0, 1):
        kept.keep(entry(), index, 0, SEGMENT, frames)
    kept.remove("abc", 0)
    assert [kept.restore(entry(), index, 0, tmp_path / "again") for index in (0, 1)] == [None, SEGMENT]


@pytest.mark.parametrize(("max_bytes", "finds"), [(999, []), (2900, [2]), (10_000, [0, 1, 2])])
def test_the_oldest_make_room(tmp_path: Path, frames: Path, max_bytes: int, finds: list[int]) -> None:
    kept = kept_in(tmp_path, max_bytes)
    for number in range(3):
        kept.keep(entry(), 0, number, SEGMENT, frames)
    found = [number for number in range(3) if kept.restore(entry(), 0, number, tmp_path / "again") is not None]
    assert found[-1:] == finds[-1:]
    assert len(found) <= len(finds) + 1


def test_an_unwritable_folder_costs_the_protection_alone(tmp_path: Path, frames: Path) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    kept = kept_in(tmp_path)
    kept.keep(entry(), 0, 0, SEGMENT, frames)
    kept.remove("abc", 0)
    kept.sweep()
    assert kept.restore(entry(), 0, 0, tmp_path / "again") is None
