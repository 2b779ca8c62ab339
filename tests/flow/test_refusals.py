"""The log has code, path and message of every refusal and failure, under the id of the job."""

from __future__ import annotations

import logging

import pytest

from tests.flow.conftest import Receiver, Runner, small
from worker.base import log


def deep() -> object:
    """Nested further than JSON is written."""
    nested: list[object] = []
    for _ in range(5000):
        nested = [nested]
    return nested


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the log's own handler writes from now on."""
    written: list[str] = []
    handler = logging.Handler()
    handler.setFormatter(log._Formatter("text", log._Redactor(())))
    handler.emit = lambda record: written.append(handler.format(record))  # type: ignore[method-assign]
    for name in ("worker.jobs.report",):
        monkeypatch.setattr(logging.getLogger(name), "handlers", [handler])
    return written


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({"prompt": "a", "fps": 61}, "refused: invalid_request: fps: must be 1 to 60, not 61"),
        ({"prompt": "a", "metadata": deep()}, "refused: invalid_request: input: is nested too deep"),
        (
            {"prompt": "a", "webhook_url": "http://10.0.0.1/hook?key=secret"},
            "refused: input_blocked: webhook_url: this URL may not be fetched",
        ),
        (small(model="5b", reference_video_url="http://localhost/a.mp4", strength=0.5), "unsupported: model"),
    ],
    ids=["value", "deep", "webhook", "video"],
)
def test_a_refusal_says_why(run: Runner, lines: list[str], payload: dict[str, object], said: str) -> None:
    assert run(payload, job_id="rp-7")["status"] == "failed"
    (line,) = [line for line in lines if said in line]
    assert " WARNING " in line
    assert line.endswith("  job=rp-7")
    assert "secret" not in line


def test_a_payload_that_is_nested_too_deep_has_its_event_too(run: Runner, receiver: Receiver) -> None:
    run({"prompt": "a", "metadata": deep(), "webhook_url": receiver.url})
    (event,) = receiver.events
    assert (event["type"], event["code"], event["data"]["error"]["path"]) == ("failed", 400, "input")


def test_a_failure_says_why_and_no_prompt(run: Runner, lines: list[str]) -> None:
    video = small(prompt="the text of a customer", loras=[{"source": "none.safetensors"}])
    run(video, job_id="rp-8")
    (line,) = [line for line in lines if "video 0 failed" in line]
    assert "video 0 failed: unsupported: loras[0].source: " in line
    assert "job=rp-8" in line
    assert "customer" not in line + "".join(lines)
    assert "secret" not in "".join(lines)
