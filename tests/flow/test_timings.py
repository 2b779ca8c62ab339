"""The seconds of real jobs: each is counted for the stage that took it, they add up, and the GPU's are paid for."""

from __future__ import annotations

import asyncio
import io
import time
from typing import Any

import pytest
import torch
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from tests.flow.conftest import Answer, Make, Receiver, Runner, small
from tests.kits.engine_kit import FixedPlanner, plan
from tests.kits.seeing import MADE_OF, adds_up, lines, of, scrape, value
from worker.base.metrics import Server
from worker.base.settings import Settings
from worker.base.stop import Stop
from worker.delivery.storage.base import Delivery
from worker.delivery.storage.local import LocalStorage
from worker.engine import Engine, Rendering
from worker.engine.embeddings import TextEmbeddings
from worker.media import VideoFile
from worker.request.plan import MemoryPlan


def test_the_seconds_of_one_video_add_up_in_the_video_and_in_the_job(make_runner: Make, picture_url: str) -> None:
    run = make_runner({"GPU_HOURLY_USD": "3600"})
    began = time.perf_counter()
    answer = run(small(reference_image_url=picture_url, num_frames=17))
    elapsed_s = time.perf_counter() - began
    (video,) = answer["videos"]
    timings, whole = video["timings"], answer["timings"]
    assert list(timings) == [*MADE_OF, "upload", "waiting", "total"]
    assert list(whole) == ["accept", *MADE_OF, "deliver", "waiting", "total"]
    assert adds_up(timings)
    assert adds_up(whole)
    assert timings["total"] <= whole["total"] + 0.005
    assert whole["total"] <= elapsed_s + 0.005
    for stage in MADE_OF:
        assert whole[stage] == pytest.approx(timings[stage], abs=0.002)
    # 3,600 USD an hour is 1 USD a second: the GPU is paid for from the video's turn until it is encoded.
    assert video["cost_usd"] == pytest.approx(sum(timings[stage] for stage in MADE_OF), abs=0.004)


@pytest.mark.slow
def test_the_seconds_of_several_videos_add_up_although_they_overlap(run: Runner, receiver: Receiver) -> None:
    answer = run({"webhook_url": receiver.url, "job_request_params": [small(), small(seed=2), small(model="5b")]})
    assert all(adds_up(video["timings"]) for video in answer["videos"])
    assert adds_up(answer["timings"])
    for stage in MADE_OF:
        seconds = sum(video["timings"][stage] for video in answer["videos"])
        assert answer["timings"][stage] == pytest.approx(seconds, abs=0.003)


@pytest.mark.slow
def test_each_second_is_told_of_the_stage_that_took_it(
    run: Runner, httpserver: HTTPServer, picture_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stage is slowed down by a time of its own, which must be found there and nowhere else."""
    delays = {"inputs": 0.3, "text": 0.4, "upload": 0.5}

    def slow_picture(_: Request) -> Response:
        time.sleep(delays["inputs"])
        return Response(status=302, headers={"Location": picture_url})

    httpserver.expect_request("/slow.png").respond_with_handler(slow_picture)
    plain = run({"job_id": "plain", "job_request_params": [small(reference_image_url=picture_url)]})["videos"][0]
    embeds, store = TextEmbeddings.embeds, LocalStorage.store

    def slow_text(*arguments: Any, **more: Any) -> Any:
        time.sleep(delays["text"] / 2)  # the prompt and the negative prompt
        return embeds(*arguments, **more)

    def slow_store(self: LocalStorage, video: VideoFile, key: str, **more: Any) -> Delivery:
        time.sleep(delays["upload"])
        return store(self, video, key, **more)

    monkeypatch.setattr(TextEmbeddings, "embeds", slow_text)
    monkeypatch.setattr(LocalStorage, "store", slow_store)
    request = small(reference_image_url=httpserver.url_for("/slow.png"))
    slow = run({"job_id": "slow", "job_request_params": [request]})["videos"][0]
    for stage, delay_s in delays.items():
        assert slow["timings"][stage] >= delay_s
    assert slow["timings"]["waiting"] <= slow["timings"]["total"] - sum(delays.values())
    assert adds_up(slow["timings"])
    assert slow["sha256"] == plain["sha256"]


@pytest.mark.slow
def test_the_wait_for_the_gpu_is_no_stage_of_the_video_and_costs_nothing(
    make_runner: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs at once, as the local API allows: the second waits while the first is made."""
    run = make_runner({"GPU_HOURLY_USD": "3600"})
    generate = Engine.generate

    def slow(self: Engine, *arguments: Any, **more: Any) -> Rendering:
        time.sleep(0.5)
        return generate(self, *arguments, **more)

    monkeypatch.setattr(Engine, "generate", slow)

    async def both() -> list[Answer]:
        return list(await asyncio.gather(*(run.start(small(), job_id=name) for name in ("one", "two"))))

    first, second = (answer["videos"][0] for answer in asyncio.run(both()))
    waited_s = max(first["timings"]["waiting"], second["timings"]["waiting"])
    assert waited_s >= 0.5
    for video in (first, second):
        assert adds_up(video["timings"])
        assert video["cost_usd"] <= video["timings"]["total"] - video["timings"]["waiting"]


def test_a_video_that_fails_while_it_is_generated_tells_where_its_seconds_went(
    run: Runner, written: io.StringIO, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    def fail(*_: object, **named: Any) -> Rendering:
        named["watcher"].loading(0.0)
        named["watcher"].generating(0.0)
        time.sleep(0.2)
        raise RuntimeError("x")

    monkeypatch.setattr(Engine, "generate", fail)
    answer = run(small())
    assert answer["status"] == "failed"
    (line,) = of(lines(written.getvalue()), outcome="failed")
    assert line["code"] == "internal"
    assert line["timings"]["generate"] >= 0.2
    assert adds_up(line["timings"])
    assert line["gpu_seconds"] >= 0.2
    assert answer["timings"]["generate"] >= 0.2
    assert (value(scrape(server.port), "videogen_gpu_seconds_total", held_by="failed") or 0.0) >= 0.2


@pytest.mark.parametrize("below", [plan("swap"), None])
def test_a_try_that_ran_out_of_memory_has_a_name_of_its_own(
    make_runner: Make, monkeypatch: pytest.MonkeyPatch, written: io.StringIO, server: Server, below: MemoryPlan | None
) -> None:
    """Its seconds are paid for, and are neither the last try's nor waiting."""
    run = make_runner({"GPU_HOURLY_USD": "3600"})
    planner = FixedPlanner(None, Settings(), None, plan("resident"), below)
    monkeypatch.setattr(run.worker.engine, "planner", planner)
    run.worker.engine.preload(["t2v"], Stop())
    tries: list[int] = []

    def fail(*_: object) -> None:
        tries.append(1)
        if len(tries) == 1:
            time.sleep(0.4)
            raise torch.OutOfMemoryError("CUDA out of memory")

    run.worker.engine.models["t2v"].components.transformer.register_forward_pre_hook(fail)
    answer = run(small())
    assert (len(tries) > 1) is (below is not None)  # the second try has the same experts
    found = lines(written.getvalue())
    (line,) = [line for line in found if "outcome" in line]
    timings = line["timings"]
    assert adds_up(timings)
    assert adds_up(answer["timings"])
    assert timings["waiting"] < 0.4
    if below is None:  # the only try is the one that failed
        assert (answer["status"], "retry" in timings) == ("failed", False)
        assert timings["generate"] >= 0.4
        return
    assert answer["videos"][0]["timings"] == timings
    assert list(timings) == ["inputs", "retry", "load", "text", "generate", "encode", "upload", "waiting", "total"]
    assert timings["retry"] >= 0.4
    assert answer["timings"]["retry"] == pytest.approx(timings["retry"], abs=0.002)
    assert answer["videos"][0]["cost_usd"] == pytest.approx(
        sum(timings[stage] for stage in (*MADE_OF, "retry")), abs=0.004
    )
    (told,) = of(found, stage="retry")
    assert told["seconds"] == pytest.approx(timings["retry"], abs=0.002)
    assert value(scrape(server.port), "videogen_stage_seconds_count", stage="retry") == 1


def test_a_video_that_no_try_has_room_for_tells_of_both(
    run: Runner, monkeypatch: pytest.MonkeyPatch, written: io.StringIO
) -> None:
    planner = FixedPlanner(None, Settings(), None, plan("resident"), plan("swap"))
    monkeypatch.setattr(run.worker.engine, "planner", planner)
    delays = iter((0.3, 0.6))

    def fail(*_: object, **__: object) -> None:
        time.sleep(next(delays))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("diffusers.WanTransformer3DModel.forward", fail)
    answer = run(small())
    (line,) = of(lines(written.getvalue()), outcome="failed")
    assert line["code"] == "out_of_memory"
    assert line["timings"]["retry"] >= 0.3
    assert line["timings"]["generate"] >= 0.6
    assert line["gpu_seconds"] >= 0.9
    assert adds_up(line["timings"])
    assert adds_up(answer["timings"])


def test_a_refused_job_has_timings_too(run: Runner) -> None:
    answer = run({"job_request_params": [small(fps=61)]})
    assert list(answer["timings"]) == ["accept", "deliver", "waiting", "total"]
    assert adds_up(answer["timings"])
