"""What the device does wrong, played with torch's own exceptions: what the caller is told, and what the worker does."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.flow.conftest import Receiver, Runner, small
from worker.base.stop import Stop
from worker.request.catalogue import T2V_A14B


@pytest.fixture
def break_expert(run: Runner, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Puts a function in the place of the text-to-video high-noise expert's forward pass."""

    def put(forward: Callable[..., Any]) -> None:
        run.worker.engine.preload([T2V_A14B.key], Stop())
        expert = run.worker.engine.models[T2V_A14B.key].components.transformer
        monkeypatch.setattr(expert, "forward", forward)

    return put


def test_a_lost_device_is_answered_first_and_then_the_worker_restarts(
    run: Runner, receiver: Receiver, break_expert: Callable[..., None]
) -> None:
    calls = []

    def forward(*_: object, **__: object) -> None:
        calls.append(1)
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    break_expert(forward)
    answer = run({"job_id": "lost", "webhook_url": receiver.url, "job_request_params": [small(), small()]})
    assert answer["refresh_worker"] is True
    assert json.loads(answer["error"])["code"] == "internal"
    assert [video["error"]["retryable"] for video in answer["videos"]] == [True, True]
    assert calls == [1]  # nothing more is asked of a device that is lost
    assert [event["code"] for event in receiver.of_type("failed")] == [500, 500]
    assert "CUDA" not in json.dumps(answer)


def test_any_other_answer_does_not_restart_the_worker(run: Runner) -> None:
    assert "refresh_worker" not in run(small())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_no_numbers_end_as_internal(
    run: Runner, break_expert: Callable[..., None], value: float
) -> None:
    def forward(hidden_states: torch.Tensor, **_: object) -> tuple[torch.Tensor]:
        return (torch.full_like(hidden_states, value),)

    break_expert(forward)
    answer = run(small(num_inference_steps=1))
    assert json.loads(answer["error"])["code"] == "internal"


def test_a_blank_video_ends_as_internal(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(hidden_states: torch.Tensor, timestep: torch.Tensor, **_: object) -> tuple[torch.Tensor]:
        return (hidden_states / (timestep.item() / 1000),)  # one Euler step along this, from sigma to 0, leads to zero

    run.worker.engine.preload([T2V_A14B.key], Stop())
    monkeypatch.setattr(run.worker.engine.models[T2V_A14B.key].components.transformer_2, "forward", forward)
    answer = run(small(quality_preset="turbo"))
    assert json.loads(answer["error"])["code"] == "internal"


def test_out_of_memory_is_told_with_a_remedy_and_the_next_job_runs(
    run: Runner, break_expert: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    break_expert(forward)
    answer = run(small(), job_id="oom")
    error = json.loads(answer["error"])
    assert (error["code"], error["retryable"], error["path"]) == ("out_of_memory", False, "num_frames")
    assert "smaller size" in error["message"]
    monkeypatch.undo()
    # The environment of the first worker is gone with the patch; the engine, which matters here, is the same.
    assert run(small(), job_id="next")["status"] == "completed"
