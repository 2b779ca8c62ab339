"""The lines that real jobs log: one for each stage, video and job, under the id of its job."""

from __future__ import annotations

import asyncio
import io

import pytest
from pytest_httpserver import HTTPServer

from tests.flow.conftest import Make, Receiver, Runner, small
from tests.kits.seeing import MADE_OF, lines, of, scrape, value
from worker.base import metrics
from worker.base.metrics import Server
from worker.jobs import tidy


def test_every_stage_video_and_job_has_a_line_with_its_seconds(
    make_runner: Make, receiver: Receiver, written: io.StringIO
) -> None:
    run = make_runner({"GPU_HOURLY_USD": "3600"})
    run.worker.engine.models.drop("t2v")  # so that the threads that load it are heard too
    payload = {"job_id": "seen", "webhook_url": receiver.url, "job_request_params": [small(), small(seed=2)]}
    answer = run(payload)
    found = lines(written.getvalue())
    assert all(line["job_id"] == "seen" for line in found)
    assert [line for line in found if "all weights are there" in line["message"]]
    for video in answer["videos"]:
        index = video["index"]
        stages = {line["stage"]: line for line in of(found, video=index) if "stage" in line}
        assert stages.keys() == {*MADE_OF, "upload", "webhook"}
        assert all(isinstance(line["seconds"], float) for line in stages.values())
        for stage in ("load", "text", "generate"):
            assert stages[stage]["seconds"] == pytest.approx(video["timings"][stage], abs=0.002)
        assert stages["upload"]["size_bytes"] == video["size_bytes"]
        assert (stages["webhook"]["event"], stages["webhook"]["arrived"]) == ("completed", True)
        (line,) = of(found, video=index, outcome="completed")
        assert line["timings"] == video["timings"]
        assert line["seconds"] == video["timings"]["total"]
        assert line["cost_usd"] == video["cost_usd"]
        assert line["gpu_seconds"] == pytest.approx(video["cost_usd"], abs=0.001)
        assert (line["mode"], line["model"]) == ("text_to_video", "a14b")
        assert "peak_vram_bytes" not in line  # a CPU has none
    (line,) = of(found, status="completed")
    assert line["timings"] == answer["timings"]
    assert (line["videos"], line["delivered"], line["code"]) == (2, 2, "none")
    assert line["cost_usd"] == pytest.approx(sum(video["cost_usd"] for video in answer["videos"]), abs=1e-5)
    assert line == found[-1]


def test_peak_memory_of_the_gpu_is_in_the_line_and_the_metrics(
    run: Runner, written: io.StringIO, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    """No GPU is here: what PyTorch's counter would answer is put in its place."""
    monkeypatch.setattr("worker.engine.device.peak_bytes", lambda: 41 * metrics.GIB)
    run(small())
    (line,) = of(lines(written.getvalue()), outcome="completed")
    assert line["peak_vram_bytes"] == 41 * metrics.GIB
    assert "peak VRAM 41.0 GiB" in line["message"]
    assert value(scrape(server.port), "videogen_peak_vram_bytes_sum", model="a14b") == 41 * metrics.GIB


@pytest.mark.slow
def test_events_and_videos_of_earlier_jobs_are_logged_under_their_own_job(
    make_runner: Make, httpserver: HTTPServer, written: io.StringIO
) -> None:
    """They are sent and stored outside of any job, from the threads of `tidy`.

    This worker tries the event beside the second job; then every worker leaves its receiver alone for 5 s.
    """
    run = make_runner({})
    httpserver.expect_ordered_request("/late", method="POST").respond_with_data(status=503)
    payload = {"webhook_url": httpserver.url_for("/late"), "webhook_events": ["completed"]}

    async def hurried() -> None:
        task = asyncio.create_task(run.start({**payload, "job_id": "untold", "job_request_params": [small()]}))
        while "attempt 1" not in written.getvalue():
            await asyncio.sleep(0.01)
        run.worker.shutdown.begin()
        await task

    object.__setattr__(run.worker.shutdown, "_grace_s", 0.0)
    asyncio.run(hurried())
    outputs = run.worker.settings.output_dir
    outputs.rename(outputs.with_name("away"))
    outputs.write_text("in the way of the storage")
    object.__setattr__(run.worker, "shutdown", type(run.worker.shutdown)(20.0))
    assert run(small(), job_id="unstored")["status"] == "failed"
    outputs.unlink()
    outputs.with_name("away").rename(outputs)
    httpserver.clear()
    httpserver.expect_request("/late").respond_with_data("ok")
    written.truncate(0)
    written.seek(0)
    state_dir = run.worker.settings.state_dir
    assert state_dir is not None
    for rest in (state_dir / "outbox-rests").iterdir():
        rest.unlink()
    asyncio.run(tidy.tidy(make_runner({}).worker))
    found = lines(written.getvalue())
    (told,) = [line for line in found if "kept in the outbox: delivered" in line["message"]]
    assert told["job_id"] == "untold"
    (stored,) = of(found, stage="upload")
    assert (stored["job_id"], stored["video"]) == ("unstored", 0)
