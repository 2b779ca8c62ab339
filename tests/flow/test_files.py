"""Files as requests ask for them: in the answer, at an address of the caller's, with what stands beside them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from tests.flow.conftest import Make, Receiver, Runner, Watched, local_path
from tests.flow.conftest import small as small_request
from tests.kits import s3_double
from tests.kits.loopback import resolver_to
from worker.media.formats import CODECS
from worker.net import Opener

QUERY = "X-Amz-Signature=5ec4e7"


def small(**fields: Any) -> dict[str, Any]:
    return small_request(num_inference_steps=1, **fields)


def file_in(video: Mapping[str, Any]) -> bytes:
    content = base64.b64decode(video["video_base64"], validate=True)
    assert hashlib.sha256(content).hexdigest() == video["sha256"]
    assert len(content) == video["size_bytes"]
    return content


def on_disk(folder: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


def logged(caplog: pytest.LogCaptureFixture) -> str:
    """What the worker logged; the server of the test logs the requests that it gets."""
    return "\n".join(record.getMessage() for record in caplog.records if record.name != "werkzeug")


def test_a_file_is_in_the_answer_and_nowhere_else(run: Runner, receiver: Receiver, tmp_path: Path) -> None:
    payload = {"webhook_url": receiver.url, "job_request_params": [small(response_format="base64"), small(seed=2)]}
    first = run(payload)["videos"]
    assert file_in(first[0]) == local_path(first[0]["video_url"]).read_bytes()
    assert "video_base64" not in first[1]
    assert all(b"video_base64" not in body for body in receiver.bodies)
    assert "video_base64" not in on_disk(tmp_path / "state")
    again = run(payload)["videos"]
    assert again == first


@pytest.mark.slow
def test_a_file_that_is_too_large_is_made_to_fit_once(make_runner: Make, receiver: Receiver) -> None:
    """What is stored is what is in the answer."""
    run = make_runner({"INLINE_MAX_BYTES": "100000"})
    noise = small(response_format="base64", video_quality="maximum", num_frames=17)
    payload = {"webhook_url": receiver.url, "job_request_params": [noise]}
    (video,) = run(payload)["videos"]
    assert len(file_in(video)) <= 100_000
    assert file_in(video) == local_path(video["video_url"]).read_bytes()
    assert any("encoded again" in line for line in video["warnings"])
    assert receiver.of_type("completed")[0]["data"]["warnings"] == video["warnings"]
    assert run(payload)["videos"] == [video]


def test_on_the_platform_without_a_bucket_every_file_is_in_the_answer(make_runner: Make) -> None:
    run = make_runner({"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:9/"})
    (video,) = run({"job_request_params": [small(frames_zip=True)]})["videos"]
    assert file_in(video)
    (line,) = video["warnings"]
    assert "no bucket is configured" in line
    assert "video_url, thumbnail_url and frames_url lead to the worker's own disk" in line


def test_on_the_platform_a_full_disk_loses_no_file(make_runner: Make, tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("a file in the way")
    run = make_runner({"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:9/"})
    (video,) = run({"job_request_params": [small()]})["videos"]
    assert (video["status"], len(file_in(video)) > 0) == ("completed", True)


def test_what_cannot_fit_is_refused_before_the_gpu_is_used(make_runner: Make) -> None:
    run = make_runner({"INLINE_MAX_BYTES": "100000"})
    large = small(response_format="base64", output_format="gif", num_frames=161)
    (video,) = run({"job_request_params": [large]})["videos"]
    assert video["error"]["code"] == "unsupported"
    assert video["error"]["path"] == "job_request_params[0].response_format"
    assert "generating" not in {event.status for event in run.reports}


def test_a_poster_and_frames_that_the_bucket_refuses_are_lines_in_warnings(make_runner: Make) -> None:
    def videos_alone(handler: s3_double.Handler) -> bool:
        is_video = handler.path.split("?")[0].endswith(".mp4")
        return not is_video and s3_double.status(403, "AccessDenied")(handler)

    with s3_double.serving() as bucket:
        bucket.always["put"] = videos_alone
        (video,) = make_runner(bucket.environment())(small(frames_zip=True))["videos"]
    assert (video["status"], video["thumbnail_url"], video["frames_url"]) == ("completed", None, None)
    assert "thumbnail, frames_zip: made and not stored, the storage did not take them" in video["warnings"]


class Theirs:
    """The caller's own store, which refuses while `status` is no success."""

    def __init__(self, server: HTTPServer) -> None:
        self.status, self.taken = 200, list[bytes]()
        self.url = server.url_for("/theirs.mp4")
        server.expect_request("/theirs.mp4", method="PUT").respond_with_handler(self._take)

    def _take(self, request: Request) -> Response:
        if self.status == 200:
            self.taken.append(request.get_data())
        return Response(status=self.status)


@pytest.fixture
def theirs(httpserver: HTTPServer) -> Theirs:
    return Theirs(httpserver)


def test_a_video_goes_to_the_callers_own_store(
    run: Runner, theirs: Theirs, receiver: Receiver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    payload = {"webhook_url": receiver.url, "job_request_params": [small(upload_url=f"{theirs.url}?{QUERY}")]}
    answer = run(payload)
    (video,) = answer["videos"]
    (content,) = theirs.taken
    assert hashlib.sha256(content).hexdigest() == video["sha256"]
    assert (video["video_url"], video["thumbnail_url"]) == (theirs.url, None)
    assert any("thumbnail: not stored" in line for line in video["warnings"])
    assert not (tmp_path / "outputs").exists()
    assert run(payload)["videos"] == [video]
    assert len(theirs.taken) == 1
    for text in (json.dumps(answer), logged(caplog), on_disk(tmp_path / "state"), str(receiver.bodies)):
        assert "5ec4e7" not in text


def test_an_expired_address_keeps_the_video_for_the_next_delivery(
    run: Runner, theirs: Theirs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No other job's tidying stores it: only its own job knows the address. A fresh signature is the same payload."""
    theirs.status = 403
    (video,) = run({"job_id": "one", "job_request_params": [small(upload_url=f"{theirs.url}?{QUERY}")]})["videos"]
    assert (video["error"]["code"], video["error"]["path"]) == ("upload_failed", "job_request_params[0].upload_url")
    assert "expired" in video["error"]["message"]
    run({"prompt": ""}, job_id="two")
    assert len(list((tmp_path / "state" / "spool").glob("*.mp4"))) == 1
    assert "5ec4e7" not in on_disk(tmp_path / "state") + logged(caplog) + json.dumps(video)
    theirs.status = 200
    fresh = small(upload_url=f"{theirs.url}?X-Amz-Signature=another")
    (video,) = run({"job_id": "one", "job_request_params": [fresh]})["videos"]
    assert video["status"] == "completed"
    assert hashlib.sha256(theirs.taken[0]).hexdigest() == video["sha256"]


def test_an_address_that_may_not_be_reached_is_refused_at_once(run: Runner) -> None:
    answer = run({"job_request_params": [small(upload_url="http://169.254.169.254/a?b=1")]})
    error = json.loads(answer["error"])
    assert (error["code"], error["path"]) == ("input_blocked", "job_request_params[0].upload_url")


def test_a_name_that_leads_to_where_nothing_may_be_reached_is_refused_before_the_gpu(
    run: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    run.worker = replace(run.worker, opener=Opener(resolver=resolver_to("10.0.0.1")))
    (video,) = run({"job_request_params": [small(upload_url="http://store.example/a?b=1")]})["videos"]
    assert (video["error"]["code"], video["error"]["path"]) == ("input_blocked", "job_request_params[0].upload_url")
    assert "failed: input_blocked" in caplog.text
    assert "generate took" not in caplog.text


@pytest.mark.slow
def test_a_video_that_was_deleted_is_made_again_once_and_not_at_each_delivery(
    run: Runner, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = {"job_id": "gone", "job_request_params": [small(seed=None)]}
    (first,) = run(payload)["videos"]
    local_path(first["video_url"]).unlink()
    # Another encoder, driver or GPU may give other bytes for the same seed: what is stored must be what is recorded.
    other = replace(CODECS["h264"], quality={"high": ("-crf", "30")})
    monkeypatch.setattr("worker.media.formats.CODECS", {"h264": other})
    (second,) = run(payload)["videos"]
    assert len(watched.made) == 2
    assert second["sha256"] != first["sha256"]
    (third,) = run(payload)["videos"]
    assert len(watched.made) == 2
    assert third == second
