"""What `submit` writes and says when a job has ended: its files, its failures, another worker's answer."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.kits.cli_kit import VIDEO, Send, answer, video
from tests.kits.endpoint_double import ENDPOINT_ID, EndpointDouble, State, completed, failed
from worker.base.errors import InputFailed, JobTimeout
from worker.jobs import answers


def broken(index: int) -> dict[str, Any]:
    return answers.video_failure("rp-1", index, InputFailed("the server answered with HTTP status 404", path="a"))


def test_a_partial_job_keeps_what_it_has_and_exits_with_1(endpoint: EndpointDouble, send: Send) -> None:
    endpoint.plays(completed(answer(broken(0), video(endpoint, 1))))
    done = send("--prompt", "a", "--out", "clip.mp4")
    assert done.status == 1
    assert "video 0 failed: input_failed: a: the server answered with HTTP status 404" in done.out
    assert "  video 1   clip-1.mp4" in done.out
    assert Path("clip-1.mp4").read_bytes() == VIDEO


def test_a_failed_job_is_read_video_by_video(endpoint: EndpointDouble, send: Send) -> None:
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
def test_a_job_without_videos_says_why(state: State, said: str, endpoint: EndpointDouble, send: Send) -> None:
    endpoint.plays(state)
    done = send("--prompt", "a")
    assert (done.status, done.out) == (1, "")
    assert said in done.err
    assert len(done.err) < 700
    assert "\x1b" not in done.err


def test_as_json_a_failed_job_is_its_state(endpoint: EndpointDouble, send: Send) -> None:
    endpoint.plays({"status": "TIMED_OUT"})
    done = send("--prompt", "a", "--json")
    assert done.status == 1
    assert json.loads(done.out)["status"] == "TIMED_OUT"


def test_a_video_that_cannot_be_fetched_is_told_and_the_others_are_fetched(
    endpoint: EndpointDouble, send: Send
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


def test_a_worker_without_a_bucket_is_explained(endpoint: EndpointDouble, send: Send) -> None:
    endpoint.plays(completed(answer(video(endpoint, video_url="file:///outputs/0.mp4", thumbnail_url=None))))
    done = send("--prompt", "a")
    assert done.status == 1
    assert "configure a bucket for the worker" in done.err


@pytest.mark.parametrize("as_json", [False, True])
def test_a_file_in_the_answer_is_written_to_its_place(as_json: bool, endpoint: EndpointDouble, send: Send) -> None:
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


def test_an_answer_of_another_version_is_fetched_all_the_same(endpoint: EndpointDouble, send: Send) -> None:
    made = video(endpoint)
    endpoint.plays(completed({"videos": [{key: made[key] for key in ("status", "video_url")}], "status": "completed"}))
    done = send("--prompt", "a", "--out", "clip.mp4")
    assert (done.status, done.out) == (0, "clip.mp4\n")
