"""Temporary folders: removed at the end, and by another worker when theirs was killed."""

from __future__ import annotations

import logging
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import cast, get_args

import pytest

from worker.base import scratch
from worker.base.scratch import Purpose, ScratchFolder

FORK = multiprocessing.get_context("fork")
DAY_S = 24 * 3600.0


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def aged(path: Path, age_s: float) -> Path:
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def _make_and_die(purpose: str) -> None:
    folder = ScratchFolder(cast(Purpose, purpose))
    (folder.path / "0.mp4").write_bytes(b"half a video")
    os.kill(os.getpid(), 9)


def left_behind(purpose: str, temporary: Path) -> Path:
    """A folder whose process was killed with -9."""
    process = FORK.Process(target=_make_and_die, args=(purpose,))
    process.start()
    process.join(30)
    assert process.exitcode == -9
    process.close()
    (path,) = temporary.glob(f"videogen-{purpose}-*")
    return path


def test_a_folder_goes_with_what_is_in_it(temporary: Path) -> None:
    with scratch.folder("job") as path:
        assert path.parent == temporary
        assert path.name.startswith("videogen-job-")
        (path / "0.mp4").write_bytes(b"x")
    assert list(temporary.iterdir()) == []


def test_a_folder_goes_when_its_job_fails(temporary: Path) -> None:
    with pytest.raises(KeyError), scratch.folder("job"):
        raise KeyError("x")
    assert list(temporary.iterdir()) == []


def test_a_folder_may_lie_elsewhere(temporary: Path) -> None:
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir()
    with scratch.folder("doctor", elsewhere) as path:
        assert path.parent == elsewhere
    assert list(elsewhere.iterdir()) == []


def test_a_second_close_does_nothing(temporary: Path) -> None:
    folder = ScratchFolder("demo")
    folder.close()
    folder.close()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("purpose", get_args(Purpose))
@pytest.mark.parametrize(("age_s", "goes"), [(DAY_S - 60, False), (DAY_S + 60, True)])
def test_what_a_killed_worker_left_goes_after_a_day(
    temporary: Path, purpose: str, age_s: float, goes: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = aged(left_behind(purpose, temporary), age_s)
    scratch.sweep()
    assert path.exists() != goes
    assert ("removed 1 temporary folder(s)" in caplog.text) == goes


def test_what_is_in_use_stays_however_old(temporary: Path) -> None:
    folder = ScratchFolder("demo")
    aged(folder.path, 30 * DAY_S)
    scratch.sweep()
    assert folder.path.exists()
    folder.close()


def _sweep_elsewhere() -> None:
    scratch.sweep()
    os._exit(0)


def test_another_worker_of_the_machine_leaves_it_too(temporary: Path) -> None:
    folder = ScratchFolder("job")
    aged(folder.path, 30 * DAY_S)
    process = FORK.Process(target=_sweep_elsewhere)
    process.start()
    process.join(30)
    assert (process.exitcode, folder.path.exists()) == (0, True)
    folder.close()


def test_folders_of_others_stay(temporary: Path) -> None:
    for name in ("videogen-job-unmarked", "somebody-else", "videogen-notes"):
        folder = temporary / name
        folder.mkdir()
        aged(folder, 30 * DAY_S)
    scratch.sweep()
    assert len(list(temporary.iterdir())) == 3


def test_a_temporary_folder_that_is_gone_stops_nothing(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "gone"))
    scratch.sweep()
