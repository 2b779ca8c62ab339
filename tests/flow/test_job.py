"""One job through the whole flow, on the demo model."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import pytest
from standardwebhooks import Webhook

from tests.flow.conftest import Make, Receiver, Runner, local_path, probe, small
from tests.kits.client_cases import SECRET
from worker.base.errors import JobTimeout
from worker.engine.modes.base import TextPipeline
from worker.media import encode
from worker.request.catalogue import DEMO_DEFAULTS


def test_text_to_video_gives_a_stored_video_and_a_full_result(run: Runner) -> None:
    answer = run({"job_id": "abc-123", "job_request_params": [small(fps=12, camera_motion="dolly_in")]})
    assert answer["job_id"] == "abc-123"
    assert answer["status"] == "completed"
    assert "error" not in answer
    (video,) = answer["videos"]
    assert probe(video["video_url"]) == ("h264", "yuv420p", 12.0, 256, 256, 5)
    assert "/abc-123/0.mp4" in video["video_url"]
    assert video["thumbnail_url"].endswith("/abc-123/0.jpg")
    assert local_path(video["thumbnail_url"]).read_bytes()[:3] == b"\xff\xd8\xff"
    content = local_path(video["video_url"]).read_bytes()
    assert video["sha256"] == hashlib.sha256(content).hexdigest()
    assert video["size_bytes"] == len(content)
    assert video["prompt"].startswith("a cat on a sofa")
    assert "dolly" in video["prompt"]
    assert {key: video[key] for key in ("index", "status", "job_id", "mode", "model_version", "seed", "fps")} == {
        "index": 0,
        "status": "completed",
        "job_id": "abc-123",
        "mode": "text_to_video",
        "model_version": "demo",
        "seed": 1,
        "fps": 12,
    }
    assert video["duration_seconds"] == pytest.approx(5 / 12, abs=0.001)
    assert video["resolution"] == "256x256"
    assert video["parameters"]["flow_shift"] == 12.0
    assert video["parameters"]["guidance_scale_2"] == 3.0
    assert video["gpu"] == "cpu"
    assert video["cost_usd"] is None
    (warning,) = video["warnings"]
    assert warning.startswith("job_request_params[0].fps: 12 is not the model's own rate of 16")
    assert set(video["timings"]) == {"inputs", "load", "text", "generate", "encode", "upload", "waiting", "total"}
    json.dumps(answer, allow_nan=False)


def test_the_flat_form_is_one_video_and_takes_runpods_id(run: Runner) -> None:
    answer = run(small(thumbnail=False), job_id="rp-77")
    assert answer["job_id"] == "rp-77"
    assert answer["videos"][0]["thumbnail_url"] is None


def test_a_seed_repeats_a_video_bit_for_bit_and_another_seed_does_not(run: Runner) -> None:
    first, again, other = (
        run({"job_id": name, "job_request_params": [small(seed=seed)]})["videos"][0]["sha256"]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == again
    assert first != other


def test_what_the_request_sets_changes_the_video(run: Runner) -> None:
    changes: list[dict[str, object]] = [
        {},
        {"guidance_scale": 9.0},
        {"guidance_scale_2": 1.0},
        {"flow_shift": 3.0},
        {"num_inference_steps": 3},
        {"prompt": "b"},
    ]
    answer = run({"job_request_params": [small(**{"num_inference_steps": 4, **change}) for change in changes]})
    assert len({video["sha256"] for video in answer["videos"]}) == len(changes)


def test_image_to_video_takes_the_images_aspect_ratio(run: Runner, picture_url: str) -> None:
    request = small(reference_image_url=picture_url, num_inference_steps=1)
    del request["height"], request["width"]
    (video,) = run({"job_request_params": [request]})["videos"]
    assert video["mode"] == "image_to_video"
    width, height = map(int, video["resolution"].split("x"))
    assert width / height == pytest.approx(4 / 3, rel=0.03)
    assert 0.9 < width * height / DEMO_DEFAULTS.source_area <= 1.0
    assert probe(video["video_url"])[3:5] == (width, height)


def test_the_reference_image_changes_the_video(run: Runner, picture_url: str) -> None:
    with_image = run({"job_id": "i", "job_request_params": [small(reference_image_url=picture_url)]})
    without = run({"job_id": "t", "job_request_params": [small()]})
    assert with_image["videos"][0]["sha256"] != without["videos"][0]["sha256"]


def test_both_models_and_turbo_are_served(run: Runner, picture_url: str) -> None:
    answer = run(
        {
            "job_request_params": [
                small(model="5b"),
                small(model="5b", reference_image_url=picture_url),
                small(quality_preset="turbo"),
                small(quality_preset="turbo", reference_image_url=picture_url),
            ]
        }
    )
    assert answer["status"] == "completed"
    assert [video["fps"] for video in answer["videos"]] == [24, 24, 16, 16]
    turbo = answer["videos"][2]["parameters"]
    assert (turbo["num_inference_steps"], turbo["guidance_scale"], turbo["guidance_scale_2"]) == (4, 1.0, 1.0)


def test_two_videos_are_told_in_order_and_signed(make_runner: Make, receiver: Receiver, picture_url: str) -> None:
    run = make_runner({"WEBHOOK_SECRET": SECRET})
    answer = run(
        {
            "job_id": "two",
            "webhook_url": receiver.url,
            "job_request_params": [small(), small(reference_image_url=picture_url)],
        }
    )
    finals = receiver.of_type("completed")
    assert [(event["index"], event["total"]) for event in finals] == [(0, 2), (1, 2)]
    for event, video in zip(finals, answer["videos"], strict=True):
        assert (event["status"], event["code"], event["message"]) == (True, 200, "Video Generated!")
        assert event["data"] == video
    assert len({event["event_id"] for event in finals}) == 2
    for body, headers in zip(receiver.bodies, receiver.headers, strict=True):
        Webhook(SECRET).verify(body, headers)


def test_progress_never_goes_down_and_ends_with_the_final_event(run: Runner, receiver: Receiver) -> None:
    run({"webhook_url": receiver.url, "job_request_params": [small(), small(num_frames=9), small()]})
    told = [event["progress"] for event in receiver.of_type("progress")]
    assert told
    assert told == sorted(told)
    reported = [event.progress for event in run.reports]
    assert reported == sorted(reported)
    assert {event.status for event in run.reports} <= {"queued", "loading", "generating", "encoding", "uploading"}
    final_at = {event["index"]: place for place, event in enumerate(receiver.events) if event["type"] == "completed"}
    for place, event in enumerate(receiver.events):
        if event["type"] == "progress":
            assert place < final_at[event["index"]]


def test_webhook_events_are_filtered(run: Runner, receiver: Receiver) -> None:
    run({"webhook_url": receiver.url, "webhook_events": ["failed"], "job_request_params": [small()]})
    assert receiver.events == []


@pytest.mark.slow
def test_texts_of_videos_alike_are_read_before_the_first_is_made(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = run(small(prompt="read alone", negative_prompt="never"), job_id="alone")["videos"][0]
    seen: list[str] = []
    read, encode_video = TextPipeline.encode_prompt, encode.encode

    def reading(self: TextPipeline, prompt: str | None, **options: Any) -> Any:
        seen.extend([prompt] if prompt is not None else [])  # with embeddings in hand pipelines ask with None
        return read(self, prompt, **options)

    def encoding(*given: Any, **options: Any) -> Any:
        seen.append("made")
        return encode_video(*given, **options)

    monkeypatch.setattr(TextPipeline, "encode_prompt", reading)
    monkeypatch.setattr("worker.jobs.make.encode", encoding)
    plain = {"enhance_prompt": False, "negative_prompt": "not here"}
    videos = [
        small(prompt="the first", **plain),
        small(prompt="the second", **plain),
        small(prompt="another size", width=272, **plain),
        small(prompt="read alone", negative_prompt="never"),
    ]
    answer = run({"job_request_params": videos}, job_id="together")
    assert seen == ["the first", "not here", "the second", "made", "made", "another size", "made", "made"]
    assert answer["videos"][3]["sha256"] == alone["sha256"]


def test_a_failing_video_does_not_stop_the_others(run: Runner, receiver: Receiver) -> None:
    missing = receiver.url.replace("/hook", "/missing.png")
    answer = run(
        {
            "job_id": "part",
            "webhook_url": receiver.url,
            "job_request_params": [small(), small(reference_image_url=missing), small(seed=2)],
        }
    )
    assert answer["status"] == "partial"
    assert "error" not in answer
    assert [video["status"] for video in answer["videos"]] == ["completed", "failed", "completed"]
    failure = answer["videos"][1]
    assert set(failure) == {"index", "status", "job_id", "error"}
    assert failure["error"]["code"] == "input_failed"
    assert failure["error"]["retryable"] is True
    assert failure["error"]["path"] == "job_request_params[1].reference_image_url"
    (event,) = receiver.of_type("failed")
    assert (event["status"], event["code"], event["data"]) == (False, 422, failure)
    assert event["message"] == failure["error"]["message"]


def test_a_payload_that_cannot_start_is_told_once_with_every_problem(run: Runner, receiver: Receiver) -> None:
    answer = run(
        {"job_id": "bad", "webhook_url": receiver.url, "job_request_params": [{"prompt": "", "fps": 61}, {"fps": "1"}]}
    )
    assert (answer["status"], answer["videos"]) == ("failed", [])
    error = json.loads(answer["error"])
    assert error["code"] == "invalid_request"
    for path in ("[0].prompt", "[0].fps", "[1].prompt", "[1].fps"):
        assert f"job_request_params{path}" in error["message"]
    (event,) = receiver.events
    assert (event["type"], event["code"], event["index"], event["data"]["error"]) == ("failed", 400, None, error)


def test_when_every_video_fails_the_answer_is_an_error(run: Runner) -> None:
    answer = run(small(loras=[{"source": "none.safetensors"}]))
    assert answer["status"] == "failed"
    error = json.loads(answer["error"])
    assert error == answer["videos"][0]["error"]
    assert (error["code"], error["path"], error["retryable"]) == ("unsupported", "loras[0].source", False)


@pytest.mark.parametrize("url", ["http://169.254.169.254/latest", "file:///etc/passwd", "http://u:p@example.com/"])
def test_a_webhook_that_may_not_be_called_is_refused_at_once(run: Runner, url: str) -> None:
    answer = run({"webhook_url": url, "job_request_params": [small()]})
    error = json.loads(answer["error"])
    assert (error["code"], error["path"]) == ("input_blocked", "webhook_url")


def test_unsupported_is_told_before_any_work(run: Runner, picture_url: str) -> None:
    answer = run(small(model="5b", reference_image_url=picture_url, last_image_url=picture_url))
    assert json.loads(answer["error"])["code"] == "unsupported"


@pytest.mark.slow
def test_cost_is_told_where_the_price_is_known(make_runner: Make) -> None:
    (video,) = make_runner({"GPU_HOURLY_USD": "3600"})(small())["videos"]
    # 3,600 USD an hour is 1 USD a second: the cost is the seconds until the video was encoded.
    timings = video["timings"]
    made = sum(timings[stage] for stage in ("inputs", "load", "text", "generate", "encode"))
    assert video["cost_usd"] == pytest.approx(made, rel=0.05, abs=0.05)


def test_a_job_delivered_again_is_not_made_again(run: Runner, receiver: Receiver) -> None:
    payload = {"job_id": "again", "webhook_url": receiver.url, "job_request_params": [small(), small(seed=None)]}
    first = run(payload)
    second = run(payload)
    assert second["videos"] == first["videos"]
    assert len(receiver.of_type("completed")) == 2


def test_one_job_id_with_another_payload_is_refused(run: Runner) -> None:
    run({"job_id": "same", "job_request_params": [small()]})
    answer = run({"job_id": "same", "job_request_params": [small(seed=2)]})
    assert json.loads(answer["error"])["path"] == "job_id"


def test_the_time_limit_ends_a_job_within_a_step(make_runner: Make) -> None:
    run = make_runner({"JOB_TIMEOUT_S": "0.3"})
    answer = run({"job_request_params": [small(num_inference_steps=100, num_frames=81), small()]})
    assert [video["error"]["code"] for video in answer["videos"]] == [JobTimeout.code] * 2
    assert make_runner({"JOB_TIMEOUT_S": "3600"})(small(), job_id="next")["status"] == "completed"


@pytest.mark.slow
def test_a_stop_ends_the_work_answers_cancelled_and_leaves_the_worker_ready(run: Runner, receiver: Receiver) -> None:
    async def stopped() -> dict[str, object]:
        long = small(num_inference_steps=100, num_frames=81)
        task = asyncio.create_task(run.start({"webhook_url": receiver.url, "job_request_params": [small(), long]}))
        while not any(event.status == "generating" and event.index == 1 for event in run.reports):
            await asyncio.sleep(0.02)
        task.cancel()
        return await task

    run.reports.clear()
    answer = asyncio.run(stopped())
    assert answer["status"] == "partial"
    assert [video["status"] for video in answer["videos"]] == ["completed", "failed"]
    (event,) = receiver.of_type("failed")
    assert (event["code"], event["data"]["error"]["code"]) == (499, "cancelled")
    assert run(small(), job_id="next")["status"] == "completed"


def test_a_long_prompt_that_the_text_encoder_cuts_is_reported(run: Runner) -> None:
    (video,) = run(small(prompt="x y " * 400))["videos"]
    assert any("the text encoder reads the first 512" in warning for warning in video["warnings"])
