"""The metrics of a worker in a process of its own: the port that it opens, its start and its jobs."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import psutil
import pytest

from tests.flow.conftest import small
from tests.kits.platform_double import Platform, WorkerProcess
from tests.kits.seeing import MADE_OF, adds_up, of, scrape, value


def listening(worker: WorkerProcess) -> set[int]:
    process = psutil.Process(worker._pid)
    return {
        connection.laddr.port
        for each in (process, *process.children(recursive=True))
        for connection in each.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }


@pytest.mark.slow
def test_a_worker_on_the_platform_tells_its_start_and_its_jobs(
    platform: Platform, tmp_path: Path, unused_tcp_port: int
) -> None:
    port = unused_tcp_port
    environment = {"METRICS_PORT": str(port), "LOG_FORMAT": "json", "GPU_HOURLY_USD": "3600", "PRELOAD": "t2v"}
    with WorkerProcess(platform, tmp_path, environment) as worker:
        assert listening(worker) == {port}  # in the worker alone: the SDK's heartbeat has closed its copy
        sample = scrape(port)
        parts = {
            part: value(sample, "videogen_cold_start_seconds", part=part) for part in ("settings", "load", "total")
        }
        assert all(seconds is not None and seconds > 0.0 for seconds in parts.values()), parts
        total_s = parts["total"]
        assert value(sample, "videogen_cost_usd_total", held_by="cold_start") == pytest.approx(total_s, abs=1e-4)
        job_id = platform.submit(small())
        assert platform.wait_result(job_id)["output"]["status"] == "completed"
        worker.wait_until(lambda: bool(value(scrape(port), "videogen_jobs_total", status="completed", code="none")))
        found = [json.loads(line) for line in worker.log.splitlines() if line.startswith("{") and '"logger"' in line]
    (start,) = of(found, stage="cold_start")
    assert start["cost_usd"] == pytest.approx(start["seconds"], abs=0.001)
    assert adds_up({**start["timings"], "total": start["seconds"]})
    ours = of(found, job_id=job_id)
    assert {line.get("stage") for line in ours} >= {*MADE_OF, "upload"}
    (answered,) = of(ours, status="completed")
    assert answered["cost_usd"] > 0.0


@pytest.mark.slow  # tests/unit/base/test_metrics.py has it without a process
def test_a_worker_without_metrics_port_opens_none(platform: Platform, tmp_path: Path) -> None:
    with WorkerProcess(platform, tmp_path) as worker:
        assert listening(worker) == set()


@pytest.mark.slow
def test_a_port_in_use_does_not_stop_the_worker(platform: Platform, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with WorkerProcess(platform, tmp_path, {"METRICS_PORT": str(port)}) as worker:
            assert platform.wait_result(platform.submit(small()))["output"]["status"] == "completed"
            assert worker.log.count(f"METRICS_PORT {port} cannot be opened (Address already in use)") == 1
