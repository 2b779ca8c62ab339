"""`submit` sends a job: to RunPod's API on loopback, and once with the real handler behind it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from unittest.mock import ANY

import pytest

from tests.kits.cli_kit import POSTER, VIDEO, Send, answer, video
from tests.kits.endpoint_double import API_KEY, EndpointDouble, completed, in_progress, in_queue
from tests.kits.platform_double import Platform, WorkerProcess
from tests.kits.s3_double import Double
from tests.kits.worker_process import ROOT
from videogen_client.core import RUN_LIMIT_BYTES


def test_a_job_is_sent_followed_and_fetched(endpoint: EndpointDouble, send: Send) -> None:
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


def test_a_payload_of_several_videos_fills_a_folder(endpoint: EndpointDouble, send: Send) -> None:
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


def test_a_whole_event_is_a_payload_too(endpoint: EndpointDouble, send: Send) -> None:
    endpoint.plays(completed(answer(video(endpoint))))
    done = send("--payload", str(ROOT / "test_input.json"))
    assert done.status == 0
    event = json.loads((ROOT / "test_input.json").read_text(encoding="utf-8"))
    assert endpoint.requests("run")[0].body == {"input": {"job_id": ANY, **event["input"]}}


def test_a_picture_of_this_machine_travels_in_the_request(endpoint: EndpointDouble, send: Send) -> None:
    Path("person.png").write_bytes(b"pixels")
    endpoint.plays(completed(answer(video(endpoint))))
    assert send("--prompt", "a cat", "--image", "person.png", "--out", "a.mp4").status == 0
    assert endpoint.requests("run")[0].body["input"]["reference_image_url"] == "data:image/png;base64,cGl4ZWxz"


@pytest.mark.parametrize(("over", "status"), [(0, 0), (4, 1)])
def test_a_request_is_as_large_as_runpod_takes(over: int, status: int, endpoint: EndpointDouble, send: Send) -> None:
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
def test_a_wrong_use_sends_nothing(arguments: list[str], said: str, endpoint: EndpointDouble, send: Send) -> None:
    Path("broken.json").write_text("{")
    Path("taken.mp4").write_bytes(b"mine")
    done = send(*arguments)
    assert (done.status, done.out) == (2, "")
    assert said in done.err
    assert endpoint.seen == []


def test_a_wrong_value_sends_nothing(endpoint: EndpointDouble, send: Send) -> None:
    done = send("--prompt", "a", "--width", "100")
    assert (done.status, done.err) == (2, "error: --width: must be 256 to 1920, not 100\n")
    Path("job.json").write_text('{"job_request_params": [{"prompt": "a", "num_infrence_steps": 3}]}')
    done = send("--payload", "job.json")
    assert "job_request_params[0].num_infrence_steps: is not a field" in done.err
    assert endpoint.seen == []


def test_limits_that_an_operator_can_move_are_the_endpoints_to_judge(
    endpoint: EndpointDouble, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_FRAMES", "81")
    endpoint.plays(completed(answer(video(endpoint))))
    assert send("--prompt", "a", "--frames", "241").status == 0


def test_without_a_key_nothing_is_sent(endpoint: EndpointDouble, send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
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
    status: int | None, said: str, times: int, endpoint: EndpointDouble, send: Send
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


def test_a_job_whose_answer_was_lost_is_sent_again_under_the_same_id(endpoint: EndpointDouble, send: Send) -> None:
    endpoint.plays(completed(answer(video(endpoint))))
    endpoint.lose["run"] = 1
    assert send("--prompt", "a").status == 0
    first, second = endpoint.requests("run")
    assert first.body == second.body


def test_a_wrong_key_and_a_wrong_endpoint(
    endpoint: EndpointDouble, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "answered 404: check the endpoint's id" in send("--prompt", "a", endpoint_id="other").err
    monkeypatch.setenv("RUNPOD_API_KEY", "rpa_wrong")
    done = send("--prompt", "a")
    assert "answered 401: check the API key (RUNPOD_API_KEY)" in done.err
    assert "rpa_wrong" not in done.err


def test_detached_the_id_is_all_there_is(endpoint: EndpointDouble, send: Send) -> None:
    done = send("--prompt", "a", "--detach")
    assert done.status == 0
    assert done.out.strip() in done.err
    assert [seen.verb for seen in endpoint.seen] == ["run"]
    assert set(json.loads(send("--prompt", "a", "--detach", "--json").out)) == {"job"}


def test_the_real_handler_makes_what_is_fetched(
    endpoint: EndpointDouble, send: Send, bucket: Double, platform: Platform, tmp_path: Path
) -> None:
    """Command, API, platform, the SDK's worker with the demo model, bucket, and back."""
    endpoint.platform = platform
    with WorkerProcess(platform, tmp_path / "home", bucket.environment()):
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
