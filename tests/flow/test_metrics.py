"""The metrics of real jobs, over a real port."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer

from tests.flow.conftest import Make, Receiver, Runner, small
from tests.kits.seeing import scrape, value
from worker.base.metrics import Server


def test_the_metrics_of_real_jobs(make_runner: Make, receiver: Receiver, server: Server) -> None:
    run = make_runner({"GPU_HOURLY_USD": "3600"})
    missing = receiver.url.replace("/hook", "/missing.png")
    payload = {
        "job_id": "two",
        "webhook_url": receiver.url,
        "webhook_events": ["completed", "failed"],
        "job_request_params": [small(), small(model="5b"), small(reference_image_url=missing)],
    }
    answer = run(payload)
    assert answer["status"] == "partial"
    run({"job_id": "bad", "job_request_params": [small(fps=61)]})
    sample = scrape(server.port)
    (first, second, _) = answer["videos"]
    assert value(sample, "videogen_jobs_total", status="partial", code="input_failed") == 1
    assert value(sample, "videogen_jobs_total", status="failed", code="invalid_request") == 1
    assert value(sample, "videogen_job_seconds_count") == 2
    for model in ("a14b", "5b"):
        labels = {"mode": "text_to_video", "model": model, "outcome": "completed", "code": "none"}
        assert value(sample, "videogen_videos_total", **labels) == 1
    failed = {"mode": "image_to_video", "model": "a14b", "outcome": "failed", "code": "input_failed"}
    assert value(sample, "videogen_videos_total", **failed) == 1
    seen = {"inputs": 3, "load": 2, "text": 2, "generate": 2, "encode": 2, "upload": 2, "webhook": 3}
    assert {stage: value(sample, "videogen_stage_seconds_count", stage=stage) for stage in seen} == seen
    for stage in ("generate", "encode", "upload"):
        seconds = sum(video["timings"][stage] for video in (first, second))
        assert value(sample, "videogen_stage_seconds_sum", stage=stage) == pytest.approx(seconds, rel=0.05, abs=0.01)
    assert value(sample, "videogen_webhook_attempts_total", event="final", result="delivered") == 3
    assert value(sample, "videogen_upload_attempts_total", file="video", result="stored") == 2
    assert value(sample, "videogen_upload_attempts_total", file="poster", result="stored") == 2
    size_bytes = sum(video["size_bytes"] for video in (first, second))
    assert value(sample, "videogen_stored_bytes_total", file="video") == size_bytes
    cost_usd = sum(video["cost_usd"] for video in (first, second))
    assert value(sample, "videogen_cost_usd_total", held_by="completed") == pytest.approx(cost_usd, abs=1e-5)
    assert value(sample, "videogen_gpu_seconds_total", held_by="completed") == pytest.approx(cost_usd, abs=1e-5)
    assert value(sample, "videogen_cache_lookups_total", cache="journal", result="miss") == 3
    assert value(sample, "videogen_outbox_events") == 0
    assert value(sample, "videogen_spool_videos") == 0

    run(payload)  # delivered again: two videos are there, the third is tried anew
    sample = scrape(server.port)
    assert value(sample, "videogen_cache_lookups_total", cache="journal", result="hit") == 2
    again = {"mode": "text_to_video", "model": "a14b", "outcome": "again", "code": "none"}
    assert value(sample, "videogen_videos_total", **again) == 1
    assert value(sample, "videogen_stage_seconds_count", stage="generate") == 2
    assert value(sample, "videogen_cost_usd_total", held_by="completed") == pytest.approx(cost_usd, abs=1e-5)


def test_text_embeddings_that_are_known_count_as_hits(run: Runner, server: Server) -> None:
    def looked_up() -> tuple[float, float]:
        sample = scrape(server.port)
        hits, misses = (
            value(sample, "videogen_cache_lookups_total", cache="text", result=result) for result in ("hit", "miss")
        )
        return hits or 0.0, misses or 0.0

    run({"job_id": "one", "job_request_params": [small(prompt="a heron that nobody asked for before")]})
    first = looked_up()
    run({"job_id": "two", "job_request_params": [small(prompt="a heron that nobody asked for before", seed=2)]})
    second = looked_up()
    assert first[1] >= 1
    assert (second[0] - first[0], second[1] - first[1]) == (2, 0)


def test_what_waits_is_counted_when_it_is_scraped(
    run: Runner, httpserver: HTTPServer, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    httpserver.expect_request("/gone").respond_with_data(status=503, headers={"Retry-After": "600"})
    run({"job_id": "told", "webhook_url": httpserver.url_for("/gone"), "job_request_params": [small()]})
    sample = scrape(server.port)
    assert value(sample, "videogen_outbox_events") == 1
    assert value(sample, "videogen_webhook_attempts_total", event="final", result="failed") == 1
    outputs = run.worker.settings.output_dir
    outputs.rename(outputs.with_name("away"))
    outputs.write_text("in the way of the storage")
    assert run(small(), job_id="kept")["status"] == "failed"
    sample = scrape(server.port)
    assert value(sample, "videogen_upload_attempts_total", file="video", result="failed") == 1
    assert value(sample, "videogen_spool_videos") == 1
    held = sum(file.stat().st_size for file in (run.worker.settings.state_dir or Path()).glob("spool/*"))
    assert value(sample, "videogen_spool_bytes") == held > 0
    failed = {"mode": "text_to_video", "model": "a14b", "outcome": "failed", "code": "upload_failed"}
    assert value(sample, "videogen_videos_total", **failed) == 1
    assert (value(sample, "videogen_gpu_seconds_total", held_by="failed") or 0.0) > 0.0


def test_no_label_holds_what_a_request_says(run: Runner, receiver: Receiver, server: Server) -> None:
    run({"job_id": "job-77", "webhook_url": receiver.url, "job_request_params": [small(prompt="a heron in reeds")]})
    labels = {text for _, pairs in scrape(server.port) for _, text in pairs}
    assert labels
    assert not [text for text in labels if any(word in text for word in ("job-77", "heron", "http", "localhost"))]
