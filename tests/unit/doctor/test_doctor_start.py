"""The start of a worker under the doctor's eyes: what refuses it, what is only told, and what the platform learns."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.kits import s3_double
from tests.kits.doctor_kit import Bucket, deployment
from tests.kits.platform_double import Platform, WorkerProcess
from worker.base.errors import SettingsError
from worker.doctor import CannotStart, Check, start_checks, watched
from worker.doctor.report import fail, ok, warn

PLATFORM = "http://127.0.0.1:9/job-take/$ID"


@pytest.fixture
def on_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNPOD_WEBHOOK_GET_JOB", PLATFORM)
    monkeypatch.setenv("MODEL_PROFILE", "demo")


@pytest.fixture
def platform() -> Iterator[Platform]:
    with Platform() as platform:
        yield platform


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


def refused(platform: Platform, home: Path, **environment: str) -> tuple[str, dict[str, list[str]]]:
    """A worker that ends with status 1 without asking for a job: its log, and what it told the platform of itself."""
    worker = WorkerProcess(platform, home, {"CUDA_VISIBLE_DEVICES": "", **environment})
    worker.process.start()
    try:
        assert worker.wait(120) == 1
    finally:
        worker.kill()
    assert not platform.has_polled(worker.worker_id)
    (ping,) = platform.pings
    return worker.log, parse_qs(urlsplit(ping).query)


@pytest.mark.slow
def test_the_platform_learns_why_a_worker_without_a_gpu_does_not_start(platform: Platform, tmp_path: Path) -> None:
    log, told = refused(platform, tmp_path, MODEL_PROFILE="wan2.2")
    assert "the worker cannot start: no CUDA GPU is visible to this worker" in log
    assert (told["status"], told["check"]) == (["unhealthy"], ["gpu"])
    assert told["reason"][0].startswith("CannotStart: the worker cannot start: no CUDA GPU is visible")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[s3_double.Double]:
    monkeypatch.setattr(s3_double, "Handler", Bucket)
    with s3_double.serving() as double:
        yield double


def of_bucket(double: s3_double.Double) -> dict[str, str]:
    return {
        "DIGITAL_OCEAN_ENDPOINT_URL": double.endpoint_url,
        "DIGITAL_OCEAN_BUCKET_NAME": "videos",
        "DIGITAL_OCEAN_BUCKET_ACCESS_KEY": "the-access-key",
        "DIGITAL_OCEAN_BUCKET_SECRET_KEY": "the-secret-key",
    }


def test_a_storage_that_refuses_the_key_refuses_the_start(
    platform: Platform, bucket: s3_double.Double, tmp_path: Path
) -> None:
    bucket.always["create"] = s3_double.status(403, "SignatureDoesNotMatch")
    log, told = refused(platform, tmp_path, PRELOAD="none", **of_bucket(bucket))
    assert "status 403, code SignatureDoesNotMatch" in log
    assert "check DIGITAL_OCEAN_BUCKET_ACCESS_KEY" in log
    assert told["check"] == ["storage"]
    assert "the-secret-key" not in log


def test_a_storage_out_of_order_and_a_state_folder_that_cannot_be_used_are_told_and_serve(
    platform: Platform, bucket: s3_double.Double, tmp_path: Path
) -> None:
    bucket.always["create"] = s3_double.status(503, "SlowDown")
    (tmp_path / "file").write_bytes(b"")
    environment = {"PRELOAD": "none", "STATE_DIR": str(tmp_path / "file"), **of_bucket(bucket)}
    with WorkerProcess(platform, tmp_path, environment) as worker:
        log = worker.log
    assert "state: STATE_DIR" in log
    assert "status 503, code SlowDown" in log
    assert set(bucket.operations()) == {"create"}
    assert bucket.objects == {}
