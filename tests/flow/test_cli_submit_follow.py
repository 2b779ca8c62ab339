"""`submit` follows a job that it sent or picks up again, and cancels it at Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.kits.cli_kit import TIMING, VIDEO, Send, answer, video
from tests.kits.endpoint_double import ENDPOINT_ID, EndpointDouble, completed, in_progress
from tests.kits.worker_process import ROOT


def test_a_passing_failure_is_sat_out(endpoint: EndpointDouble, send: Send) -> None:
    endpoint.plays(in_progress(10), completed(answer(video(endpoint))))
    endpoint.refuse["status"] = [500, None, 503]
    assert send("--prompt", "a").status == 0
    assert len(endpoint.requests("status")) == 5


def test_a_failure_that_stays_leaves_the_job_and_says_how_to_go_on(endpoint: EndpointDouble, send: Send) -> None:
    endpoint.plays(completed(answer(video(endpoint))))
    endpoint.refuse["status"] = [503] * TIMING.attempts
    done = send("--prompt", "a")
    job_id = endpoint.requests("status")[0].job_id
    assert done.status == 1
    assert f"follow it with: videogen submit --endpoint {ENDPOINT_ID} --job {job_id}" in done.err
    assert endpoint.requests("cancel") == []


def test_a_job_is_picked_up_again(endpoint: EndpointDouble, send: Send) -> None:
    endpoint.plays(in_progress(80), completed(answer(video(endpoint))))
    done = send("--job", "rp-77", "--out", "clip.mp4")
    assert done.status == 0
    assert endpoint.requests("run") == []
    assert {seen.job_id for seen in endpoint.requests("status")} == {"rp-77"}
    assert Path("clip.mp4").read_bytes() == VIDEO
    # Again: the video is there, and nothing of it is fetched a second time.
    fetched = len(endpoint.requests("file"))
    assert send("--job", "rp-77", "--out", "clip.mp4").status == 0
    assert [seen.job_id for seen in endpoint.requests("file")[fetched:]] == ["0.jpg"]


def test_a_job_that_runpod_has_forgotten(endpoint: EndpointDouble, send: Send) -> None:
    endpoint.plays(completed(answer(video(endpoint))))
    endpoint.refuse["status"] = [404]
    done = send("--job", "rp-77")
    assert done.status == 1
    assert "kept for 30 minutes" in done.err


def test_following_ends_with_its_time_and_the_job_goes_on(endpoint: EndpointDouble, send: Send) -> None:
    endpoint.plays(in_progress(1))
    done = send("--prompt", "a", "--timeout", "0.05")
    assert done.status == 1
    assert "not done in time (--timeout); the job goes on" in done.err
    assert endpoint.requests("cancel") == []


def interrupted(endpoint: EndpointDouble, at: int) -> None:
    """Ctrl-C when the state is asked for the `at`-th time."""

    def press(count: int) -> None:
        if count == at:
            os.kill(os.getpid(), signal.SIGINT)

    endpoint.on_status = press


def test_ctrl_c_cancels_the_job(endpoint: EndpointDouble, send: Send) -> None:
    endpoint.plays(in_progress(1))
    interrupted(endpoint, at=3)
    done = send("--prompt", "a")
    job_id = endpoint.requests("run")[0] and endpoint.requests("status")[0].job_id
    assert (done.status, done.err) == (
        130,
        f"cancelling job {job_id} at RunPod\ncancelled: RunPod stops job {job_id}\n",
    )
    assert [seen.job_id for seen in endpoint.requests("cancel")] == [job_id]


def test_a_job_that_ended_before_it_was_cancelled_is_not_called_cancelled(endpoint: EndpointDouble, send: Send) -> None:
    endpoint.plays(in_progress(1), completed(answer(video(endpoint))))
    endpoint.refuse["cancel"] = [400]
    interrupted(endpoint, at=1)
    done = send("--prompt", "a")
    job_id = endpoint.requests("status")[0].job_id
    assert done.status == 130
    assert f"had ended before; see it with: videogen submit --endpoint {ENDPOINT_ID} --job {job_id}" in done.err


def test_a_cancel_that_fails_is_not_called_one(endpoint: EndpointDouble, send: Send) -> None:
    endpoint.plays(in_progress(1))
    endpoint.refuse["cancel"] = [500] * TIMING.attempts
    interrupted(endpoint, at=2)
    done = send("--prompt", "a")
    assert done.status == 1
    assert "could not be cancelled, and may go on: cancel it in RunPod's console" in done.err


def test_ctrl_c_in_a_process_of_its_own(endpoint: EndpointDouble, tmp_path: Path) -> None:
    endpoint.plays(in_progress(5))
    with subprocess.Popen(
        [sys.executable, "-m", "worker.cli", "submit", "--endpoint", ENDPOINT_ID, "--prompt", "a"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'client' / 'src'}", "RUNPOD_ENDPOINT_BASE_URL": endpoint.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while not endpoint.requests("status") and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out) == (130, "")
    assert re.fullmatch(r"cancelling job (\S+) at RunPod\ncancelled: RunPod stops job \1\n", err)
    assert len(endpoint.requests("cancel")) == 1
