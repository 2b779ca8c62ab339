"""Previews through whole jobs: told at once, stored under one name, and the end of a video where that is asked for."""

from __future__ import annotations

import asyncio
import hashlib
import json
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pytest_httpserver import HTTPServer

from tests.flow.conftest import Make, Receiver, Runner, local_path, small
from tests.kits.s3_double import Double, Handler, status
from worker.base.errors import UploadFailed
from worker.base.stop import Stop
from worker.delivery.storage.local import LocalStorage
from worker.engine.preview_map import fit


@pytest.fixture(autouse=True)
def coarse_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine.preview_map.fit", partial(fit, clips=4, side=32))


def told(receiver: Receiver) -> list[int]:
    """The step of each preview that was told, once."""
    return list(
        dict.fromkeys(event["preview_step"] for event in receiver.of_type("progress") if "preview_step" in event)
    )


def test_each_preview_is_told_at_once_and_stored_under_one_name(run: Runner, receiver: Receiver) -> None:
    plain = run(small(num_inference_steps=4), job_id="plain")["videos"][0]
    asked = small(num_inference_steps=4, preview="animated", preview_at=[0.25, 0.75], webhook_url=receiver.url)
    video = run(asked, job_id="shown")["videos"][0]
    assert video["status"] == "completed", video
    path = local_path(video["preview_url"])
    assert path == local_path(video["video_url"]).with_name("0.preview.webp")
    assert path.stat().st_size <= 64_000
    with Image.open(path) as picture:
        assert (picture.format, picture.n_frames) == ("WEBP", 2)
    assert told(receiver)[-1] == 3
    events = [event for event in run.reports if event.preview_step is not None]
    assert {event.preview_url for event in events} == {video["preview_url"]}
    assert events[0].preview_step == 1
    assert (video["parameters"]["preview"], video["parameters"]["preview_at"]) == ("animated", [0.25, 0.75])
    assert "preview_url" not in plain


def test_preview_only_has_a_preview_and_no_video_and_is_not_made_again(
    run: Runner, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = small(num_inference_steps=10, preview_only=True, preview_at=[0.2], webhook_url=receiver.url)
    answer = run(asked)
    video = answer["videos"][0]
    assert (answer["status"], video["status"], video["video_url"]) == ("completed", "completed", None)
    assert (video["seed"], video["num_frames"], video["resolution"]) == (1, 5, "256x256")
    content = local_path(video["preview_url"]).read_bytes()
    assert (video["size_bytes"], video["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    (final,) = receiver.of_type("completed")
    assert final["data"]["preview_url"] == video["preview_url"]
    monkeypatch.setattr(run.worker.engine, "generate", None)
    assert run(asked)["videos"][0]["preview_url"] == video["preview_url"]


def test_a_preview_that_is_gone_is_made_again(run: Runner) -> None:
    asked = small(preview_only=True, preview_at=[0.5])
    path = local_path(run(asked)["videos"][0]["preview_url"])
    path.unlink()
    assert local_path(run(asked)["videos"][0]["preview_url"]).exists()


def fails(*_: Any, **__: Any) -> str:
    raise UploadFailed("the storage is down")


def test_a_preview_that_fails_is_a_warning_of_its_video(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalStorage, "store_file", fails)
    video = run(small(preview="strip", preview_at=[0.5]))["videos"][0]
    assert video["status"] == "completed"
    assert "preview: that of step 1 failed: the storage is down" in video["warnings"]
    assert video["preview_url"] is None


def test_preview_only_without_its_preview_has_failed(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalStorage, "store_file", fails)
    (video,) = run(small(preview_only=True, preview_at=[0.5]))["videos"]
    assert video["error"]["code"] == "upload_failed"


def test_on_the_platform_without_a_bucket_a_preview_is_in_its_own_url(make_runner: Any, tmp_path: Path) -> None:
    run = make_runner({"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:1/job", "OUTPUT_DIR": str(tmp_path)})
    (video,) = run(small(preview_only=True, preview_at=[0.5]))["videos"]
    assert video["preview_url"].startswith("data:image/webp;base64,")


def test_on_the_platform_a_full_disk_loses_no_preview(
    make_runner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalStorage, "store_file", fails)
    run = make_runner({"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:1/job", "OUTPUT_DIR": str(tmp_path)})
    (video,) = run(small(preview_only=True, preview_at=[0.5]))["videos"]
    assert (video["status"], video["preview_url"][:11]) == ("completed", "data:image/")


def test_a_stop_after_a_preview_ends_within_a_step(run: Runner) -> None:
    """Progress of a stage that goes on is reported every 2 s at most: the engine's own steps are counted."""
    begun: list[int] = []
    run.worker.engine.preload(["t2v"], Stop())
    expert = run.worker.engine.models["t2v"].components.transformer
    hook = expert.register_forward_pre_hook(lambda *_: begun.append(len(begun)))
    asked = small(num_inference_steps=100, num_frames=81, guidance_scale=1.0, preview="strip", preview_at=[0.03])

    async def stopped() -> tuple[dict[str, Any], int]:
        task = asyncio.create_task(run.start(asked))
        while not any(event.preview_step for event in run.reports):
            await asyncio.sleep(0.002)
        task.cancel()
        at = len(begun)
        return await task, at

    run.reports.clear()
    answer, at = asyncio.run(stopped())
    hook.remove()
    assert json.loads(answer["error"])["code"] == "cancelled"
    assert len(begun) <= at + 2  # the one under way, and one until the event loop has its turn


# --- with a bucket


@pytest.fixture
def stored(make_runner: Make, bucket: Double) -> Runner:
    """A worker whose files go to `bucket`."""
    return make_runner(bucket.environment())


def test_previews_are_put_into_the_bucket_over_each_other(stored: Runner, bucket: Double) -> None:
    video = stored(small(num_inference_steps=4, preview="strip", preview_at=[0.25, 0.75]), job_id="one")["videos"][0]
    (name,) = [path for path in bucket.objects if path.endswith(".webp")]
    assert video["preview_url"] == bucket.endpoint_url + name
    assert name == video["video_url"].removeprefix(bucket.endpoint_url).replace("0.mp4", "0.preview.webp")
    assert bucket.objects[name].headers["content-type"] == "image/webp"
    with Image.open(BytesIO(bucket.objects[name].body)) as picture:
        assert picture.format == "WEBP"
    events = [event for event in stored.reports if event.preview_step is not None]
    assert {event.preview_url for event in events} == {video["preview_url"]}


def test_beside_an_upload_url_the_preview_is_in_the_bucket(
    stored: Runner, bucket: Double, httpserver: HTTPServer
) -> None:
    httpserver.expect_request("/theirs", method="PUT").respond_with_data("")
    asked = small(preview="strip", preview_at=[0.5], upload_url=httpserver.url_for("/theirs?signature=1"))
    (video,) = stored(asked)["videos"]
    assert video["video_url"] == httpserver.url_for("/theirs")
    assert video["preview_url"].startswith(bucket.endpoint_url)
    assert [path.rpartition("/")[2] for path in bucket.objects] == ["0.preview.webp", "0.jpg"]


def test_beside_an_upload_url_alone_the_preview_is_in_its_own_url(make_runner: Make, httpserver: HTTPServer) -> None:
    run = make_runner({"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:1/job"})
    httpserver.expect_request("/theirs", method="PUT").respond_with_data("")
    asked = small(preview="strip", preview_at=[0.5], upload_url=httpserver.url_for("/theirs?signature=1"))
    (video,) = run(asked)["videos"]
    assert (video["status"], video["video_url"]) == ("completed", httpserver.url_for("/theirs"))
    assert video["preview_url"].startswith("data:image/webp;base64,")


def test_a_bucket_that_is_down_costs_the_preview_alone_until_the_video_is_stored(
    stored: Runner, bucket: Double
) -> None:
    def previews_fail(handler: Handler) -> bool:
        return handler.path.split("?")[0].endswith(".webp") and status(403, "AccessDenied")(handler)

    bucket.always["put"] = previews_fail
    (video,) = stored(small(preview="strip", preview_at=[0.5]))["videos"]
    assert (video["status"], video["preview_url"]) == ("completed", None)
    assert any("preview: that of step 1 failed" in line for line in video["warnings"])
