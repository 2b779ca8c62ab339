"""The start of a worker under the doctor's eyes: what refuses it, what is only told, and what the platform learns."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.kits.doctor_kit import deployment
from worker.base.errors import SettingsError
from worker.doctor import CannotStart, Check, start_checks, watched
from worker.doctor.report import fail, ok, warn

PLATFORM = "http://127.0.0.1:9/job-take/$ID"


@pytest.fixture
def on_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNPOD_WEBHOOK_GET_JOB", PLATFORM)
    monkeypatch.setenv("MODEL_PROFILE", "demo")


def beside(monkeypatch: pytest.MonkeyPatch, *checks: Check) -> None:
    monkeypatch.setattr(start_checks, "BESIDE_LOADING", checks)


@pytest.mark.usefixtures("on_platform")
def test_what_stops_every_job_refuses_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MODEL_PROFILE")
    entered = []
    with pytest.raises(CannotStart) as caught, watched(deployment(tmp_path)):
        entered.append(True)
    assert not entered
    assert isinstance(caught.value, SettingsError)
    assert [line.name for line in caught.value.lines] == ["gpu"]
    assert str(caught.value).startswith("the worker cannot start: no CUDA GPU is visible to this worker, ")
    assert str(caught.value).endswith("(check: gpu)")


def test_a_local_start_without_the_gpu_that_it_asks_for_is_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_PROFILE", "wan2.2")
    with pytest.raises(CannotStart, match="no CUDA GPU"), watched(deployment(tmp_path)):
        pass


def test_a_local_start_is_told_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    beside(monkeypatch, Check("never", lambda _: fail("bad", "mend", stops_jobs=True)))
    with watched(deployment(tmp_path)):
        pass
    assert caplog.records == []


@pytest.mark.usefixtures("on_platform")
def test_on_the_platform_what_does_not_stop_jobs_is_told_and_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    beside(
        monkeypatch,
        Check("good", lambda _: ok("fine")),
        Check("so so", lambda _: warn("half as good", "look at it")),
        Check("state", lambda _: fail("no folder", "make one")),
    )
    with caplog.at_level(logging.WARNING), watched(deployment(tmp_path)):
        pass
    told = [record.getMessage() for record in caplog.records]
    assert told[0].startswith("settings: serves demo, loads first: i2v; on the platform, the demo model answers")
    assert told[1:] == ["so so: half as good; look at it", "state: no folder; make one"]


@pytest.mark.usefixtures("on_platform")
def test_on_the_platform_what_is_looked_at_beside_the_loading_refuses_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside(
        monkeypatch,
        Check("storage", lambda _: fail("refused", "check the key", stops_jobs=True)),
        Check("ffmpeg", lambda _: fail("broken", "install it", stops_jobs=True)),
    )
    entered = []
    with pytest.raises(CannotStart) as caught, watched(deployment(tmp_path)):
        entered.append(True)
    assert entered
    assert caught.value.problems == ("refused; check the key (check: storage)", "broken; install it (check: ffmpeg)")


@pytest.mark.usefixtures("on_platform")
def test_a_check_that_is_silent_refuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    over = threading.Event()

    def hang(_: Any) -> Any:
        over.wait(30)
        return fail("too late", "nothing", stops_jobs=True)

    monkeypatch.setattr(start_checks, "WAIT_S", 0.05)
    beside(monkeypatch, Check("storage", hang, advice="check the network"))
    try:
        with caplog.at_level(logging.WARNING), watched(deployment(tmp_path)):
            pass
    finally:
        over.set()
    assert "storage: did not answer in 0 s; check the network" in caplog.text


@pytest.mark.usefixtures("on_platform")
def test_what_the_loading_raises_passes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside(monkeypatch)
    with pytest.raises(LookupError), watched(deployment(tmp_path)):
        raise LookupError
