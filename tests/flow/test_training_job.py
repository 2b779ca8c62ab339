"""A whole training: a ZIP behind a URL becomes LoRA files that a request uses."""

from __future__ import annotations

import asyncio
import io
import json
import time
import zipfile
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pytest_httpserver import HTTPServer
from safetensors import safe_open
from werkzeug import Request, Response

from tests.flow.conftest import Answer, Make, Receiver, Runner, local_path, small
from tests.kits import s3_double
from worker.delivery.webhooks.progress_sender import ProgressEvent
from worker.jobs import flow, train
from worker.jobs.progress import Progress
from worker.request.contact import payload_digest


@pytest.fixture
def data_url(httpserver: HTTPServer) -> str:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number in range(5):
            picture = io.BytesIO()
            noise = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((256, 256)).save(picture, "PNG")
            archive.writestr(f"{number}.png", picture.getvalue())
            archive.writestr(f"{number}.txt", f"coloured squares, number {number}")
    httpserver.expect_request("/set.zip").respond_with_data(stream.getvalue(), content_type="application/zip")
    return httpserver.url_for("/set.zip")


def training(url: str, **fields: object) -> dict[str, object]:
    return {"training_data_url": url, "number_of_steps": 10, "learning_rate": 3e-3, "seed": 4, "rank": 4, **fields}


def test_a_training_makes_loras_that_a_request_uses(
    run: Runner, data_url: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "Progress", partial(Progress, min_interval_s=0.0))  # it may take less than 2 s
    payload = {
        "webhook_url": receiver.url,
        "train": training(data_url, num_frames=5, trigger_phrase="sq", sample_prompts=["a cat"]),
    }
    answer = run(payload, job_id="style")
    assert answer["status"] == "completed", answer
    assert answer["dataset"]["held_out"] == 1
    for each in answer["experts"].values():
        assert each["loss_after"] < each["loss_before"]
    _check_files(answer)
    final = receiver.of_type("completed")[0]
    assert (final["message"], final["data"]) == ("LoRA Trained!", json.loads(json.dumps(answer)))
    _check_progress(run.reports)

    (sample,) = answer["samples"]
    assert sample["prompt"] == "sq, a cat"
    assert local_path(sample["before_url"]).read_bytes() != local_path(sample["after_url"]).read_bytes()

    # Delivered again: the record, and no second event.
    assert {**run(payload, job_id="style"), "timings": None} == {**answer, "timings": None}
    assert len(receiver.of_type("completed")) == 1


def _check_files(answer: Answer) -> None:
    (loras,) = answer["loras"]
    for side in ("high", "low"):
        with safe_open(local_path(loras[side]), "pt") as file:
            facts = file.metadata()
        assert (facts["expert"], facts["rank"], facts["steps"], facts["seed"]) == (side, "4", "10", "4")
        assert facts["trigger_phrase"] == "sq"
        assert "/loras/" in loras[side]
        assert loras[side].endswith(f"/style/{side}.safetensors")


TRAINING_STAGES = ("queued", "preparing", "training", "sampling", "uploading", "completed")


def _check_progress(reports: list[ProgressEvent]) -> None:
    shown = [event.status for event in reports]
    assert {"queued", "training", "sampling"} <= set(shown) <= set(TRAINING_STAGES)
    assert shown == sorted(shown, key=TRAINING_STAGES.index)
    assert [event.progress for event in reports] == sorted(event.progress for event in reports)


@pytest.mark.slow
def test_the_loras_of_a_training_are_pasted_into_a_request(
    run: Runner, data_url: str, httpserver: HTTPServer, tmp_path: Path
) -> None:
    answer = run({"train": training(data_url, num_frames=5, experts="high")})
    (lora,) = answer["loras"]
    assert (lora["expert"], lora["scale"]) == ("high", 1.0)
    content = local_path(lora["source"]).read_bytes()
    httpserver.expect_request("/high.safetensors").respond_with_data(content)
    pasted = {**lora, "source": httpserver.url_for("/high.safetensors"), "scale": 4.0}
    plain, styled = run({"job_request_params": [small(), small(loras=[pasted])]}, job_id="use")["videos"]
    assert plain["sha256"] != styled["sha256"]
    assert styled["warnings"] == plain["warnings"]


def test_a_dry_run_reads_the_data_and_trains_nothing(run: Runner, data_url: str, receiver: Receiver) -> None:
    answer = run({"webhook_url": receiver.url, "train": training(data_url, num_frames=5, dry_run=True)})
    assert (answer["dry_run"], answer["dataset"]["clips"]) == (True, 4)
    assert "loras" not in answer
    (final,) = receiver.of_type("completed")  # whoever waits for the end of the job waits for this
    assert (final["message"], final["data"]) == ("LoRA Trained!", json.loads(json.dumps(answer)))


def test_what_cannot_be_trained_on_fails_as_any_job_does(
    run: Runner, httpserver: HTTPServer, receiver: Receiver
) -> None:
    httpserver.expect_request("/set.zip").respond_with_data(b"no zip")
    answer = run({"webhook_url": receiver.url, "train": training(httpserver.url_for("/set.zip"))})
    error = json.loads(answer["error"])
    assert (answer["status"], error["code"], error["path"]) == ("failed", "input_invalid", "train.training_data_url")
    assert receiver.of_type("failed")[0]["code"] == 422


@pytest.mark.slow
def test_a_stop_delivers_the_best_so_far_and_the_next_job_goes_on(
    run: Runner, data_url: str, receiver: Receiver
) -> None:
    payload = {
        "webhook_url": receiver.url,
        "train": training(data_url, number_of_steps=3_000, experts="high", num_frames=5, checkpoint_every=20),
    }
    answer = asyncio.run(_stopped(run, payload))
    assert answer["status"] == "completed"
    high = answer["experts"]["high"]
    assert 0 < high["best_step"] <= high["steps"] < 3_000
    assert f"train: {high['steps']} of 3000 steps were made" in answer["warnings"][-1]
    assert local_path(answer["loras"][0]["source"]).is_file()
    assert receiver.of_type("completed")[0]["data"]["warnings"] == answer["warnings"]

    # Another job of the same training begins behind the last step.
    again = asyncio.run(_stopped(run, {"train": payload["train"]}, job_id="again"))
    assert again["experts"]["high"]["steps"] > high["steps"]


async def _stopped(run: Runner, payload: object, job_id: str = "stopped") -> Answer:
    """The answer of a job that is stopped when its training reports a step."""
    run.reports.clear()
    task = asyncio.create_task(run.start(payload, job_id=job_id))
    while not any(event.status == "training" and event.step for event in run.reports):
        await asyncio.sleep(0.05)
        assert not task.done()
    task.cancel()
    return await task


def test_a_shutdown_before_the_first_step_leaves_the_training_to_another_worker(
    make_runner: Make, httpserver: HTTPServer, receiver: Receiver
) -> None:
    """No event and no answer: RunPod would take either for the end of the job."""
    run = make_runner({"SHUTDOWN_GRACE_S": "0"})

    async def interrupted() -> Answer:
        loop = asyncio.get_running_loop()

        def interrupt(_: Request) -> Response:
            loop.call_soon_threadsafe(run.worker.shutdown.begin)
            time.sleep(0.5)
            return Response(b"too late")

        httpserver.expect_request("/set.zip").respond_with_handler(interrupt)
        return await run.start({"webhook_url": receiver.url, "train": training(httpserver.url_for("/set.zip"))})

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(interrupted())
    assert receiver.of_type("failed") == []


def test_a_storage_that_is_silent_costs_a_finished_training_nothing(
    make_runner: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record counts, as that of a video does."""
    monkeypatch.setattr(train, "_ASKING_S", 0.2)
    payload = {"train": training("https://example.com/set.zip")}
    known = {
        "status": "completed",
        "model_version": "demo",
        "experts": {"high": {"sha256": "0" * 64}},
        "samples": [],
        "timings": {"total": 9.0},
        "cost_usd": None,
    }
    with s3_double.serving() as bucket:
        bucket.always["head"] = s3_double.say_nothing
        run = make_runner(bucket.environment())
        journal = run.worker.journal
        journal.accept("done", payload_digest(payload), today=date(2026, 11, 27), seeds=[4])
        journal.record_result("done", 0, known)
        answer = run(payload, job_id="done")
    assert answer["status"] == "completed", answer
    assert "/loras/2026-11-27/done/high.safetensors" in answer["loras"][0]["source"]


def test_without_a_bucket_on_the_platform_nothing_is_trained(make_runner: Make, data_url: str) -> None:
    run = make_runner({"RUNPOD_WEBHOOK_GET_JOB": "https://example.com/job"})
    error = json.loads(run({"train": training(data_url)})["error"])
    assert (error["code"], error["path"]) == ("invalid_request", "train")
    assert "bucket" in error["message"]
    assert run({"train": training(data_url, dry_run=True, num_frames=5)}, job_id="dry")["dry_run"]
