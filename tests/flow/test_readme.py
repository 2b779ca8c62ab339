"""Every example of README.md and its pages: payloads are read, answers and events are those of a run, code runs."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from pytest_httpserver import HTTPServer

from builder.docs import readme
from tests.flow.conftest import Answer, Make, Receiver, Runner, small
from tests.kits.client_cases import SECRET
from worker.engine.modes import MODES
from worker.request import CATALOGUE, Mode
from worker.request.parse import parse
from worker.weights.sources import demo

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = "\n".join(
    (ROOT / page).read_text(encoding="utf-8")
    for page in ("README.md", "docs/request.md", "docs/answer.md", "docs/webhooks.md")
)
# What an example shows of itself but cannot share with another run of the same job.
OF_THE_RUN = ("video_url", "thumbnail_url", "size_bytes", "sha256", "timings")


def blocks(kind: str) -> list[str]:
    """The fenced blocks whose info string is `kind`."""
    return re.findall(rf"^ *```{re.escape(kind)}\n(.*?)^ *```$", PAGES, re.DOTALL | re.MULTILINE)


def example(name: str) -> Any:
    """The one JSON example of that name, with what it quotes put in."""
    (text,) = blocks(f"json {name}")
    return json.loads(text, object_hook=_quoted)


def _quoted(value: dict[str, Any]) -> dict[str, Any]:
    names = {"<the video result>": "video-result", "<the video failure>": "video-failure"}

    def put_in(item: Any) -> Any:
        if isinstance(item, list):
            return [put_in(each) for each in item]
        return example(names[item]) if isinstance(item, str) and item in names else item

    return {key: put_in(item) for key, item in value.items()}


def shape(value: Any) -> Any:
    """Keys in their order and types, without the values."""
    if isinstance(value, Mapping):
        return [(key, shape(item)) for key, item in value.items()]
    if isinstance(value, list):
        return [shape(item) for item in value]
    return type(value).__name__


@pytest.fixture
def test_input() -> dict[str, Any]:
    payload: dict[str, Any] = json.loads((ROOT / "test_input.json").read_text(encoding="utf-8"))["input"]
    return payload


@pytest.fixture
def two_videos(make_runner: Make, receiver: Receiver, httpserver: HTTPServer) -> tuple[Answer, Receiver]:
    """A signed job of two videos, the second with a picture that is not there."""
    httpserver.expect_request("/missing.png").respond_with_data(status=404)
    videos = [small(), small(reference_image_url=httpserver.url_for("/missing.png"))]
    payload = {"job_id": "abc-123", "webhook_url": receiver.url, "job_request_params": videos}
    return make_runner({"WEBHOOK_SECRET": SECRET})(payload), receiver


def test_every_json_example_is_of_a_kind_that_is_tested() -> None:
    tested = {"payload", "response", "video-result", "answer", "video-failure"}
    tested |= {f"webhook-{kind}" for kind in ("completed", "failed", "progress")}
    assert set(re.findall(r"```json ?(.*)", PAGES)) == tested


@pytest.mark.parametrize("text", blocks("json payload"))
def test_payload_examples_are_read_without_a_warning(text: str) -> None:
    payload = json.loads(text)
    job = parse(payload, default_job_id="rp-1")
    assert len(job.videos) == len(payload.get("job_request_params", [payload]))
    assert [video.warnings for video in job.videos] == [()] * len(job.videos)


def test_the_answer_is_that_of_the_first_video_of_test_input(run: Runner, test_input: dict[str, Any]) -> None:
    answer = run({"job_id": "abc-123", "job_request_params": test_input["job_request_params"][:1]})
    answer["videos"][0].pop("cold_start", None)  # the first video of a process has it
    shown = example("answer")
    assert shape(shown) == shape(answer)
    (video,), (shown_video,) = answer["videos"], shown["videos"]
    video["provenance"]["instance_id"] = shown_video["provenance"]["instance_id"]
    assert shown_video == {**video, **{key: shown_video[key] for key in OF_THE_RUN}}
    (shortened,) = example("response")["videos"]
    assert all(field in shape(video) for field in shape(shortened))
    assert {**example("response"), "videos": []}.keys() == answer.keys()
    for key in ("video_url", "thumbnail_url"):
        assert shown_video[key].split("/")[-2:] == video[key].split("/")[-2:]


def test_the_events_are_those_of_a_real_job(two_videos: tuple[Answer, Receiver]) -> None:
    answer, receiver = two_videos
    assert example("video-failure") == answer["videos"][1]
    for kind in ("completed", "failed", "progress"):
        shown, sent = example(f"webhook-{kind}"), receiver.of_type(kind)[0]
        if kind == "completed":
            sent["data"].pop("cold_start", None)  # the first video of a process has it
            assert all(isinstance(warning, str) for warning in sent["data"]["warnings"])
            sent["data"]["warnings"] = shown["data"]["warnings"]  # of another request
        assert shape(shown) == shape(sent)
        for key in ("status", "code") if kind != "progress" else ():
            assert shown[key] == sent[key]
        assert len(shown["event_id"]) == len(sent["event_id"])
        assert shown.get("message") == sent.get("message")


def test_the_receiver_takes_what_is_signed_and_refuses_the_rest(
    two_videos: tuple[Answer, Receiver],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer, receiver = two_videos
    (code,) = blocks("python receiver")
    file = tmp_path / "receiver_example.py"
    file.write_text(code, encoding="utf-8")
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    receive = runpy.run_path(str(file))["receive"]
    delivered = list(zip(receiver.bodies, receiver.headers, strict=True))
    assert [receive(body, headers) for body, headers in delivered] == [200] * len(delivered)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(delivered)
    assert f"abc-123 0 {answer['videos'][0]['video_url']}" in printed
    assert "abc-123 1 input_failed" in printed
    assert any(line.startswith("abc-123 ") and line.endswith((" queued", " loading")) for line in printed)
    body, headers = delivered[-1]
    assert receive(body, headers) == 200
    assert capsys.readouterr().out == ""
    assert receive(body.replace(b"abc-123", b"abc-124"), headers) == 401
    assert receive(body, {"webhook-id": "a"}) == 401


def test_the_commands_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:`|^ *)make ([a-z-]+)", README, re.MULTILINE))
    assert {"run", "test"} <= named <= targets
    modules = set(re.findall(r"python -m ([\w.]+)", README))
    assert modules
    assert [module for module in modules if importlib.util.find_spec(module) is None] == []
    scripts = set(re.findall(r"python (\w[\w/]*\.py)", README))
    assert scripts
    assert [script for script in scripts if not (ROOT / script).is_file()] == []


def test_what_is_said_to_be_served_is_what_the_engine_serves() -> None:
    assert readme.registered_modes() == set(MODES) <= set(get_args(Mode))
    assert all(mode.name in MODES for mode in MODES.values())
    assert {spec.modes for spec in demo.catalogue()} == {spec.modes for spec in CATALOGUE}


def test_loras_are_answered_as_the_readme_says(run: Runner) -> None:
    answer = run(small(loras=[{"source": "no-such-file.safetensors"}]))
    error = json.loads(answer["error"])
    assert "{MODEL_CACHE_DIR}/loras" in PAGES
    assert (error["code"], error["path"]) == ("unsupported", "loras[0].source")
