"""`submit` against RunPod's API on loopback; once with the real handler behind it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from moto.server import ThreadedMotoServer

from tests.kits.cli_kit import Done, command
from tests.kits.endpoint_double import (
    API_KEY,
    ENDPOINT_ID,
    EndpointDouble,
    State,
    completed,
    failed,
    in_progress,
    in_queue,
)
from tests.kits.platform_double import Platform, WorkerProcess
from videogen_client import Timing, core
from videogen_client.core import RUN_LIMIT_BYTES
from worker.base.errors import InputFailed, JobTimeout
from worker.cli import submit
from worker.jobs import answers

ROOT = Path(__file__).resolve().parents[2]
VIDEO, POSTER = b"a video" * 1000, b"a poster" * 100
QUICK = Timing(poll_s=0.01, attempts=4, first_wait_s=0.001, longest_wait_s=0.002)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[EndpointDouble]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNPOD_API_KEY", API_KEY)
    monkeypatch.setattr(submit, "TIMING", QUICK)
    with EndpointDouble() as double:
        monkeypatch.setattr(core, "RUNPOD_URL", double.url)
        yield double


@pytest.fixture
def send(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def run(*arguments: str, endpoint_id: str = ENDPOINT_ID) -> Done:
        return command(capsys, "submit", "--endpoint", endpoint_id, *arguments)

    return run


def video(endpoint: EndpointDouble, index: int = 0, content: bytes = VIDEO, **more: Any) -> State:
    """A video result whose files can be fetched."""
    endpoint.files[f"{index}.mp4"], endpoint.files[f"{index}.jpg"] = content, POSTER
    return {
        "index": index,
        "status": "completed",
        "job_id": "rp-1",
        "video_url": endpoint.file_url(f"{index}.mp4"),
        "thumbnail_url": endpoint.file_url(f"{index}.jpg"),
        "duration_seconds": 5.062,
        "num_frames": 81,
        "resolution": "832x480",
        "fps": 16,
        "seed": 7,
        "prompt": "a cat",
        "model_version": "wan2.2-t2v-a14b",
        "mode": "text_to_video",
        "warnings": [],
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "timings": {"generate": 250.0, "total": 260.0},
        "gpu": "NVIDIA H100 80GB HBM3",
        "cost_usd": 0.2311,
        **more,
    }


def answer(*videos: State) -> State:
    return answers.job_answer("rp-1", videos, {"total": 261.0})


def broken(index: int) -> State:
    return answers.video_failure("rp-1", index, InputFailed("the server answered with HTTP status 404", path="a"))


def test_a_job_is_sent_followed_and_fetched(endpoint: EndpointDouble, send: Callable[..., Done]) -> None:
    endpoint.plays(in_queue(), in_progress(), in_progress(42), completed(answer(video(endpoint))))
    done = send("--prompt", "a cat", "--preset", "draft", "--seed", "7", "--out", "clip.mp4")
    assert (done.status, done.err) == (0, "")
    (run,) = endpoint.requests("run")
    assert run.body == {"input": {"prompt": "a cat", "quality_preset": "draft", "seed": 7, "job_id": ANY}}
    assert run.headers["authorization"] == f"Bearer {API_KEY}"
    assert len(endpoint.requests("status")) == 4
    assert len({seen.job_id for seen in endpoint.requests("status")}) == 1
    assert Path("clip.mp4").read_bytes() == VIDEO
    assert Path("clip.jpg").read_bytes() == POSTER
    lines = done.out.splitlines()
    assert lines[0] == "job rp-1: completed in 261.0 s"
    assert "  video 0   clip.mp4" in lines
    assert "  cost      $0.23" in lines
    assert endpoint.requests("cancel") == []


def test_a_payload_of_several_videos_fills_a_folder(endpoint: EndpointDouble, send: Callable[..., Done]) -> None:
    videos = [{"prompt": "a cat"}, {"prompt": "a dog", "thumbnail": False}]
    Path("job.json").write_text(json.dumps({"job_id": "order-1", "job_request_params": videos}))
    first, second = video(endpoint), video(endpoint, 1, b"another", thumbnail_url=None)
    endpoint.plays(completed(answer(first, second)))
    done = send("--payload", "job.json", "--out", "videos/", "--json")
    assert done.status == 0
    seen = json.loads(done.out)
    assert endpoint.requests("run")[0].body == {"input": {"job_id": "order-1", "job_request_params": videos}}
    job_id = endpoint.requests("status")[0].job_id
    assert seen["files"] == [f"videos/{job_id}-0.mp4", f"videos/{job_id}-1.mp4"]
    assert [Path(name).read_bytes() for name in seen["files"]] == [VIDEO, b"another"]
    assert len(list(Path("videos").iterdir())) == 3


def test_a_whole_event_is_a_payload_too(endpoint: EndpointDouble, send: Callable[..., Done]) -> None:
    endpoint.plays(completed(answer(video(endpoint))))
    done = send("--payload", str(ROOT / "test_input.json"))
    assert done.status == 0
    event = json.loads((ROOT / "test_input.json").read_text(encoding="utf-8"))
    assert endpoint.requests("run")[0].body == {"input": {"job_id": ANY, **event["input"]}}


def test_a_picture_of_this_machine_travels_in_the_request(endpoint: EndpointDouble, send: Callable[..., Done]) -> None:
    Path("person.png").write_bytes(b"pixels")
    endpoint.plays(completed(answer(video(endpoint))))
    assert send("--prompt", "a cat", "--image", "person.png", "--out", "a.mp4").status == 0
    assert endpoint.requests("run")[0].body["input"]["reference_image_url"] == "data:image/png;base64,cGl4ZWxz"


@pytest.mark.parametrize(("over", "status"), [(0, 0), (4, 1)])
def test_a_request_is_as_large_as_runpod_takes(
    over: int, status: int, endpoint: EndpointDouble, send: Callable[..., Done]
) -> None:
    head = {"input": {"prompt": "a", "reference_image_url": "data:image/png;base64,", "job_id": "0" * 32}}
    room = (RUN_LIMIT_BYTES - len(json.dumps(head))) // 4 * 3
    Path("person.png").write_bytes(bytes(room + over))
    endpoint.plays(completed(answer(video(endpoint))))
    done = send("--prompt", "a", "--image", "person.png", "--out", "a.mp4")
    assert done.status == status
    assert len(endpoint.requests("run")) == 1 - status
    if status:
        assert "RunPod takes 10 MB: put images behind a URL" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give one of --prompt"),
        (["--prompt", "a", "--job", "j"], "give one of --prompt"),
        (["--seed", "1", "--payload", "job.json"], "give one of --prompt"),
        (["--job", "j", "--detach"], "--detach is for a job that is sent"),
        (["--payload", "missing.json"], "--payload: missing.json cannot be read"),
        (["--payload", "broken.json"], "--payload: broken.json is not JSON"),
        (["--prompt", "a", "--video", "a.mp4"], "--video: there is no file a.mp4"),
        (
            ["--prompt", "a", "--video", "broken.json"],
            "--video: an endpoint cannot read broken.json: put the video behind",
        ),
        (["--prompt", "a", "--out", "taken.mp4"], "taken.mp4 is there already"),
        (["--prompt", "a", "--timeout", "0"], "must be more than 0"),
    ],
    ids=str,
)
def test_a_wrong_use_sends_nothing(
    arguments: list[str], said: str, endpoint: EndpointDouble, send: Callable[..., Done]
) -> None:
    Path("broken.json").write_text("{")
    Path("taken.mp4").write_bytes(b"mine")
    done = send(*arguments)
    assert (done.status, done.out) == (2, "")
    assert said in done.err
    assert endpoint.seen == []


def test_a_wrong_value_sends_nothing(endpoint: EndpointDouble, send: Callable[..., Done]) -> None:
    done = send("--prompt", "a", "--width", "100")
    assert (done.status, done.err) == (2, "error: --width: must be 256 to 1920, not 100\n")
    Path("job.json").write_text('{"job_request_params": [{"prompt": "a", "num_infrence_steps": 3}]}')
    done = send("--payload", "job.json")
    assert "job_request_params[0].num_infrence_steps: is not a field" in done.err
    assert endpoint.seen == []


def test_limits_that_an_operator_can_move_are_the_endpoints_to_judge(
    endpoint: EndpointDouble, send: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_FRAMES", "81")
    endpoint.plays(completed(answer(video(endpoint))))
    assert send("--prompt", "a", "--frames", "241").status == 0


def test_without_a_key_nothing_is_sent(
    endpoint: EndpointDouble, send: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY")
    done = send("--prompt", "a")
    assert done.status == 1
    assert "RUNPOD_API_KEY is not set" in done.err
    assert endpoint.seen == []


@pytest.mark.parametrize(
    ("status", "said", "times"),
    [
        (400, "the endpoint does not accept the request (400): planned 400", 1),
        (401, "RUNPOD_API_KEY", 1),
        (403, "RUNPOD_API_KEY", 1),
        (404, "check the endpoint's id", 1),
        (413, "the endpoint does not accept the request (413)", 1),
        (429, "the endpoint answered 429: try again in a minute\n", 4),
        (500, "try again in a minute\nRunPod may have taken the job: look at the endpoint's requests", 4),
        (None, "no answer from the endpoint", 4),
    ],
    ids=str,
)
def test_a_refused_job_says_why_and_what_to_do(
    status: int | None, said: str, times: int, endpoint: EndpointDouble, send: Callable[..., Done]
) -> None:
    endpoint.refuse["run"] = [status] * times
    done = send("--prompt", "a")
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("error: ")
    assert said in done.err
    assert API_KEY not in done.err
    assert len({seen.body["input"]["job_id"] for seen in endpoint.requests("run")}) == 1
    assert len(endpoint.requests("run")) == times
    assert endpoint.requests("status") == []


def test_a_job_whose_answer_was_lost_is_sent_again_under_the_same_id(
    endpoint: EndpointDouble, send: Callable[..., Done]
) -> None:
    endpoint.plays(completed(answer(video(endpoint))))
    endpoint.lose["run"] = 1
    assert send("--prompt", "a").status == 0
    first, second = endpoint.requests("run")
    assert first.body == second.body


def test_a_wrong_key_and_a_wrong_endpoint(
    endpoint: EndpointDouble, send: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "answered 404: check the endpoint's id" in send("--prompt", "a", endpoint_id="other").err
    monkeypatch.setenv("RUNPOD_API_KEY", "rpa_wrong")
    done = send("--prompt", "a")
    assert "answered 401: check the API key (RUNPOD_API_KEY)" in done.err
    assert "rpa_wrong" not in done.err


def test_a_passing_failure_is_sat_out(endpoint: EndpointDouble, send: Callable[..., Done]) -> None:
    endpoint.plays(in_progress(10), completed(answer(video(endpoint))))
    endpoint.refuse["status"] = [500, None, 503]
    assert send("--prompt", "a").status == 0
    assert len(endpoint.requests("status")) == 5


def test_a_failure_that_stays_leaves_the_job_and_says_how_to_go_on(
    endpoint: EndpointDouble, send: Callable[..., Done]
) -> None:
    endpoint.plays(completed(answer(video(endpoint))))
    endpoint.refuse["status"] = [503] * QUICK.attempts
    done = send("--prompt", "a")
    job_id = endpoint.requests("status")[0].job_id
    assert done.status == 1
    assert f"follow it with: videogen submit --endpoint {ENDPOINT_ID} --job {job_id}" in done.err
    assert endpoint.requests("cancel") == []


def test_a_job_is_picked_up_again(endpoint: EndpointDouble, send: Callable[..., Done]) -> None:
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


def test_a_job_that_runpod_has_forgotten(endpoint: EndpointDouble, send: Callable[..., Done]) -> None:
    endpoint.plays(completed(answer(video(endpoint))))
    endpoint.refuse["status"] = [404]
    done = send("--job", "rp-77")
    assert done.status == 1
    assert "kept for 30 minutes" in done.err


def test_detached_the_id_is_all_there_is(endpoint: EndpointDouble, send: Callable[..., Done]) -> None:
    done = send("--prompt", "a", "--detach")
    assert done.status == 0
    assert done.out.strip() in done.err
    assert [seen.verb for seen in endpoint.seen] == ["run"]
    assert set(json.loads(send("--prompt", "a", "--detach", "--json").out)) == {"job"}


def test_following_ends_with_its_time_and_the_job_goes_on(endpoint: EndpointDouble, send: Callable[..., Done]) -> None:
    endpoint.plays(in_progress(1))
    done = send("--prompt", "a", "--timeout", "0.05")
    assert done.status == 1
    assert "not done in time (--timeout); the job goes on" in done.err
    assert endpoint.requests("cancel") == []


def test_a_partial_job_keeps_what_it_has_and_exits_with_1(endpoint: EndpointDouble, send: Callable[..., Done]) -> None:
    endpoint.plays(completed(answer(broken(0), video(endpoint, 1))))
    done = send("--prompt", "a", "--out", "clip.mp4")
    assert done.status == 1
    assert "video 0 failed: input_failed: a: the server answered with HTTP status 404" in done.out
    assert "  video 1   clip-1.mp4" in done.out
    assert Path("clip-1.mp4").read_bytes() == VIDEO


def test_a_failed_job_is_read_video_by_video(endpoint: EndpointDouble, send: Callable[..., Done]) -> None:
    output = answer(broken(0), answers.video_failure("rp-1", 1, JobTimeout("took too long")))
    endpoint.plays(failed(output.pop("error"), output))
    done = send("--prompt", "a")
    assert done.status == 1
    assert "video 0 failed: input_failed: " in done.out
    assert "video 1 failed: timeout: took too long" in done.out


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (
            failed('{"code": "model_unavailable", "message": "no weights", "retryable": true}'),
            "model_unavailable: no weights",
        ),
        (failed('{"error_type": "<class>", "error_message": "worker exited"}'), "worker exited"),
        (failed("job timed out after 1 retries"), "job timed out after 1 retries"),
        (failed("a\x1b[2Jb" + "c" * 10_000), "a?[2Jb"),
        ({"status": "CANCELLED"}, "the job was cancelled"),
        ({"status": "TIMED_OUT"}, "ran into the endpoint's execution timeout"),
        (completed("done"), "something else than this worker"),
        (completed({"videos": [{"status": "completed", "video_url": 5}]}), "something else than this worker"),
    ],
    ids=str,
)
def test_a_job_without_videos_says_why(
    state: State, said: str, endpoint: EndpointDouble, send: Callable[..., Done]
) -> None:
    endpoint.plays(state)
    done = send("--prompt", "a")
    assert (done.status, done.out) == (1, "")
    assert said in done.err
    assert len(done.err) < 700
    assert "\x1b" not in done.err


def test_as_json_a_failed_job_is_its_state(endpoint: EndpointDouble, send: Callable[..., Done]) -> None:
    endpoint.plays({"status": "TIMED_OUT"})
    done = send("--prompt", "a", "--json")
    assert done.status == 1
    assert json.loads(done.out)["status"] == "TIMED_OUT"


def test_a_video_that_cannot_be_fetched_is_told_and_the_others_are_fetched(
    endpoint: EndpointDouble, send: Callable[..., Done]
) -> None:
    endpoint.plays(completed(answer(video(endpoint), video(endpoint, 1))))
    endpoint.file_faults["0.mp4"] = [("status", 403)]
    done = send("--prompt", "a", "--out", "clip.mp4")
    job_id = endpoint.requests("status")[0].job_id
    assert done.status == 1
    assert "error: video 0: the storage answered 403: the link has expired" in done.err
    assert f"try again with: videogen submit --endpoint {ENDPOINT_ID} --job {job_id}" in done.err
    assert not Path("clip-0.mp4").exists()
    assert Path("clip-1.mp4").read_bytes() == VIDEO


def test_a_worker_without_a_bucket_is_explained(endpoint: EndpointDouble, send: Callable[..., Done]) -> None:
    endpoint.plays(completed(answer(video(endpoint, video_url="file:///outputs/0.mp4", thumbnail_url=None))))
    done = send("--prompt", "a")
    assert done.status == 1
    assert "configure a bucket for the worker" in done.err


@pytest.mark.parametrize("as_json", [False, True])
def test_a_file_in_the_answer_is_written_to_its_place(
    as_json: bool, endpoint: EndpointDouble, send: Callable[..., Done]
) -> None:
    """As a worker on the platform without a bucket answers."""
    own_disk = {"video_url": "file:///outputs/0.webm", "thumbnail_url": "file:///outputs/0.jpg"}
    inline = {"video_base64": base64.b64encode(VIDEO).decode("ascii")}
    endpoint.plays(completed(answer(video(endpoint, **own_disk, **inline))))
    done = send("--prompt", "a cat", *(["--json"] if as_json else []))
    job_id = endpoint.requests("status")[0].job_id
    assert (done.status, done.err) == (0, "")
    assert Path(f"{job_id}.webm").read_bytes() == VIDEO
    assert endpoint.requests("file") == []
    if as_json:
        seen = json.loads(done.out)
        assert (seen["files"], "video_base64" in seen["videos"][0]) == ([f"{job_id}.webm"], False)
    else:
        assert f"  video 0   {job_id}.webm" in done.out.splitlines()
        assert "outputs" not in done.out


def test_an_answer_of_another_version_is_fetched_all_the_same(
    endpoint: EndpointDouble, send: Callable[..., Done]
) -> None:
    made = video(endpoint)
    endpoint.plays(completed({"videos": [{key: made[key] for key in ("status", "video_url")}], "status": "completed"}))
    done = send("--prompt", "a", "--out", "clip.mp4")
    assert (done.status, done.out) == (0, "clip.mp4\n")


def interrupted(endpoint: EndpointDouble, at: int) -> None:
    """Ctrl-C when the state is asked for the `at`-th time."""

    def press(count: int) -> None:
        if count == at:
            os.kill(os.getpid(), signal.SIGINT)

    endpoint.on_status = press


def test_ctrl_c_cancels_the_job(endpoint: EndpointDouble, send: Callable[..., Done]) -> None:
    endpoint.plays(in_progress(1))
    interrupted(endpoint, at=3)
    done = send("--prompt", "a")
    job_id = endpoint.requests("run")[0] and endpoint.requests("status")[0].job_id
    assert (done.status, done.err) == (
        130,
        f"cancelling job {job_id} at RunPod\ncancelled: RunPod stops job {job_id}\n",
    )
    assert [seen.job_id for seen in endpoint.requests("cancel")] == [job_id]


def test_a_job_that_ended_before_it_was_cancelled_is_not_called_cancelled(
    endpoint: EndpointDouble, send: Callable[..., Done]
) -> None:
    endpoint.plays(in_progress(1), completed(answer(video(endpoint))))
    endpoint.refuse["cancel"] = [400]
    interrupted(endpoint, at=1)
    done = send("--prompt", "a")
    job_id = endpoint.requests("status")[0].job_id
    assert done.status == 130
    assert f"had ended before; see it with: videogen submit --endpoint {ENDPOINT_ID} --job {job_id}" in done.err


def test_a_cancel_that_fails_is_not_called_one(endpoint: EndpointDouble, send: Callable[..., Done]) -> None:
    endpoint.plays(in_progress(1))
    endpoint.refuse["cancel"] = [500] * QUICK.attempts
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


BUCKET = "videos-bucket"


@pytest.fixture
def bucket() -> Iterator[str]:
    """An S3 server; answers its URL."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT")).close()
    yield url
    server.stop()


def test_the_real_handler_makes_what_is_fetched(
    endpoint: EndpointDouble, send: Callable[..., Done], bucket: str, tmp_path: Path
) -> None:
    """Command, API, platform, the SDK's worker with the demo model, bucket, and back."""
    storage = {
        "ENDPOINT_URL": bucket,
        "BUCKET_NAME": BUCKET,
        "BUCKET_ACCESS_KEY": "key",
        "BUCKET_SECRET_KEY": "secret",
        "BUCKET_URL": f"{bucket}/{BUCKET}",
    }
    with (
        Platform() as platform,
        WorkerProcess(platform, tmp_path / "home", {f"DIGITAL_OCEAN_{name}": v for name, v in storage.items()}),
    ):
        endpoint.platform = platform
        small = ["--width", "256", "--height", "256", "--frames", "5", "--steps", "2", "--seed", "3"]
        done = send("--prompt", "a cat", *small, "--out", "clip.mp4", "--json")
        assert done.status == 0, done.err
        (made,) = json.loads(done.out)["videos"]
        assert (made["model_version"], made["seed"]) == ("demo", 3)
        assert hashlib.sha256(Path("clip.mp4").read_bytes()).hexdigest() == made["sha256"]
        assert Path("clip.jpg").read_bytes()[:2] == b"\xff\xd8"
        assert platform.progress[endpoint.requests("status")[-1].job_id or ""]
        refused = send("--prompt", "a cat", *small, "--image", "http://10.0.0.1/a.png")
        assert refused.status == 1
        assert "input_blocked: reference_image_url: this URL may not be fetched" in refused.err
