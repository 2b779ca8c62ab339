"""A worker in a process of its own whose start the doctor refuses, or lets go on, and what the platform learns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.kits import s3_double
from tests.kits.doctor_kit import Bucket
from tests.kits.platform_double import Platform, WorkerProcess


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


@pytest.mark.slow
def test_a_storage_that_refuses_the_key_refuses_the_start(
    platform: Platform, bucket: s3_double.Double, tmp_path: Path
) -> None:
    bucket.always["create"] = s3_double.status(403, "SignatureDoesNotMatch")
    log, told = refused(platform, tmp_path, PRELOAD="none", **of_bucket(bucket))
    assert "status 403, code SignatureDoesNotMatch" in log
    assert "check DIGITAL_OCEAN_BUCKET_ACCESS_KEY" in log
    assert told["check"] == ["storage"]
    assert "the-secret-key" not in log


@pytest.mark.slow  # tests/unit/doctor/test_doctor_start.py has it without a process
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
