"""The metrics over a real port, read by a real client and the library's own parser."""

from __future__ import annotations

import logging
import multiprocessing
import re
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.kits.seeing import read, scrape, value
from tests.kits.seeing import server as server  # a fixture
from worker.base import metrics
from worker.base.metrics import TABLE, Server

PAGE = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")


def record_everything() -> None:
    metrics.job("partial", "input_failed", 12.0)
    metrics.video("image_to_video", "a14b", "completed")
    metrics.video("image_to_video", "a14b", "failed", "input_failed")
    metrics.stage("generate", 7.0)
    metrics.peak_vram("a14b", 41 * metrics.GIB)
    metrics.gpu_held("completed", 10.0, 0.01)
    metrics.webhook_attempt("final", "delivered")
    metrics.upload_attempt("video", 1000)
    metrics.upload_attempt("poster", None)
    metrics.cache("text", hit=True)
    metrics.cache("text", hit=False)
    metrics.cold_start({"imports": 5.0, "load": 40.0, "ready": 0.5, "total": 45.5}, 0.05)


def test_everything_that_is_recorded_is_served(server: Server) -> None:
    metrics.watch({"videogen_outbox_events": lambda: 3, "videogen_spool_videos": lambda: 2})
    record_everything()
    sample = scrape(server.port)
    expected: list[tuple[str, dict[str, str], float]] = [
        ("videogen_jobs_total", {"status": "partial", "code": "input_failed"}, 1),
        ("videogen_job_seconds_sum", {}, 12),
        (
            "videogen_videos_total",
            {"mode": "image_to_video", "model": "a14b", "outcome": "completed", "code": "none"},
            1,
        ),
        (
            "videogen_videos_total",
            {"mode": "image_to_video", "model": "a14b", "outcome": "failed", "code": "input_failed"},
            1,
        ),
        ("videogen_stage_seconds_sum", {"stage": "generate"}, 7),
        ("videogen_stage_seconds_bucket", {"stage": "generate", "le": "5.0"}, 0),
        ("videogen_stage_seconds_bucket", {"stage": "generate", "le": "10.0"}, 1),
        ("videogen_peak_vram_bytes_bucket", {"model": "a14b", "le": str(40.0 * metrics.GIB)}, 0),
        ("videogen_peak_vram_bytes_bucket", {"model": "a14b", "le": str(48.0 * metrics.GIB)}, 1),
        ("videogen_gpu_seconds_total", {"held_by": "completed"}, 10),
        ("videogen_gpu_seconds_total", {"held_by": "cold_start"}, 45.5),
        ("videogen_cost_usd_total", {"held_by": "completed"}, 0.01),
        ("videogen_cost_usd_total", {"held_by": "cold_start"}, 0.05),
        ("videogen_webhook_attempts_total", {"event": "final", "result": "delivered"}, 1),
        ("videogen_upload_attempts_total", {"file": "video", "result": "stored"}, 1),
        ("videogen_upload_attempts_total", {"file": "poster", "result": "failed"}, 1),
        ("videogen_stored_bytes_total", {"file": "video"}, 1000),
        ("videogen_cache_lookups_total", {"cache": "text", "result": "hit"}, 1),
        ("videogen_cache_lookups_total", {"cache": "text", "result": "miss"}, 1),
        ("videogen_outbox_events", {}, 3),
        ("videogen_spool_videos", {}, 2),
        ("videogen_cold_start_seconds", {"part": "load"}, 40),
        ("videogen_cold_start_seconds", {"part": "total"}, 45.5),
    ]
    wrong = {(name, *labels.items()): value(sample, name, **labels) for name, labels, _ in expected}
    assert wrong == {(name, *labels.items()): number for name, labels, number in expected}
    assert value(sample, "process_resident_memory_bytes")


def test_a_price_or_memory_that_is_not_known_is_not_recorded(server: Server) -> None:
    metrics.gpu_held("failed", 2.0, None)
    metrics.peak_vram("a14b", None)
    sample = scrape(server.port)
    assert value(sample, "videogen_gpu_seconds_total", held_by="failed") == 2
    assert not [name for name, _ in sample if name.startswith(("videogen_cost", "videogen_peak"))]


def test_seconds_that_the_clock_went_back_count_as_none(server: Server) -> None:
    metrics.gpu_held("completed", -1.0, -1.0)
    assert value(scrape(server.port), "videogen_gpu_seconds_total", held_by="completed") == 0


def test_buckets_of_stages_reach_from_a_tenth_of_a_second_to_an_hour() -> None:
    buckets = TABLE["videogen_stage_seconds"].buckets
    assert (buckets[0], buckets[-1]) == (0.1, 3600.0)
    assert list(buckets) == sorted(buckets)


def test_threads_that_count_at_once_lose_nothing(server: Server) -> None:
    with ThreadPoolExecutor(8) as pool:
        for _ in range(4000):
            pool.submit(metrics.webhook_attempt, "final", "failed")
    assert value(scrape(server.port), "videogen_webhook_attempts_total", event="final", result="failed") == 4000


def test_each_server_begins_anew_and_none_records_after_its_end(server: Server) -> None:
    metrics.stage("generate", 1.0)
    server.close()
    metrics.stage("generate", 1.0)
    assert not metrics.is_served()
    with pytest.raises(urllib.error.URLError):
        scrape(server.port)
    other = metrics.serve(0, address="127.0.0.1")
    assert other is not None
    try:
        assert value(scrape(other.port), "videogen_stage_seconds_count", stage="generate") is None
    finally:
        other.close()


def test_without_a_port_nothing_is_opened_recorded_or_imported() -> None:
    code = (
        "import sys, threading\n"
        "from worker.base import metrics\n"
        "assert metrics.serve(None) is None and not metrics.is_served()\n"
        "metrics.stage('generate', 1.0); metrics.job('completed', 'none', 1.0)\n"
        "assert 'prometheus_client' not in sys.modules\n"
        "assert threading.active_count() == 1\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_without_a_port_every_function_does_nothing() -> None:
    assert metrics.serve(None) is None
    record_everything()
    assert not metrics.is_served()


def test_a_port_in_use_is_said_once_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert metrics.serve(port, address="127.0.0.1") is None
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert f"METRICS_PORT {port} cannot be opened (Address already in use)" in record.getMessage()
    record_everything()
    assert not metrics.is_served()


def test_other_methods_than_get_are_refused(server: Server) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}/metrics", data=b"x", method="POST")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=20)
    with caught.value as refusal:
        assert refusal.code == 405


def _live(ready: threading.Event, end: threading.Event) -> None:
    ready.set()
    end.wait(60)


def test_a_process_that_is_forked_does_not_hold_the_port(server: Server) -> None:
    """RunPod's SDK forks its heartbeat, which may outlive a worker that was killed."""
    fork = multiprocessing.get_context("fork")
    ready, end = fork.Event(), fork.Event()
    child = fork.Process(target=_live, args=(ready, end))
    child.start()
    try:
        assert ready.wait(30)
        assert scrape(server.port)  # the parent's own is as it was
        server.close()
        with socket.socket() as next_worker:
            next_worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            next_worker.bind(("127.0.0.1", server.port))
            next_worker.listen()
    finally:
        end.set()
        child.join(30)
    assert child.exitcode == 0


# --- docs/metrics.md


def rows() -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| `vi")]
    return {row[0].strip("`"): row[1:] for row in cells}


def test_the_page_has_every_metric_with_its_type_and_labels() -> None:
    described = {name: (row[0], tuple(re.findall(r"`(\w+)`", row[1]))) for name, row in rows().items()}
    assert described == {name: (metric.kind, metric.labels) for name, metric in TABLE.items()}
    assert all(len(row[2]) > 20 for row in rows().values())


def test_the_sample_of_the_page_is_a_scrape_of_these_metrics() -> None:
    (text,) = re.findall(r"```text scrape\n(.*?)```", PAGE, re.DOTALL)
    shown = {family.name for family in text_string_to_metric_families(text)}
    exposed = {name.removesuffix("_total") for name in TABLE}
    assert shown == exposed
    for (name, labels), _ in read(text).items():
        metric = TABLE.get(name) or TABLE.get(re.sub(r"_(bucket|sum|count|created)$", "", name))
        assert metric is not None, name
        assert {label for label, _ in labels} - {"le"} == set(metric.labels)


def test_every_query_of_the_page_asks_for_metrics_that_exist() -> None:
    queries = re.findall(r"```promql\n(.*?)```", PAGE, re.DOTALL)
    assert len(queries) >= 3
    for query in queries:
        names = re.findall(r"videogen_\w+", query)
        assert names
        for name in names:
            assert name in TABLE or re.sub(r"_(bucket|sum|count)$", "", name) in TABLE, name
