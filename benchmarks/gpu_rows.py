"""The rows of `benchmarks.gpu`: what each asks of the worker, what makes it count, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from benchmarks.gpu_models import Scale
from worker.base.settings import Settings
from worker.engine.techniques import Setup, attention
from worker.request import ModelSpec, VideoRequest
from worker.request.catalogue import with_distilled_fused
from worker.request.parse import parse

Kind = Literal["guided", "turbo", "decode", "encode"]
# Half of an even number of steps is on either side of the boundary at 0.875, when the schedule is shifted so far.
_EVEN_SHIFT = 6.9
_PROMPT = "A red fox walks through deep snow towards the camera, pine trees behind it, morning light, take {}"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    settings, fields: what differs from the worker's and the request's defaults. shown: parameters of the result, and
    what they must be for the row to count. lora: the distilled weights are LoRAs put on for the run, not fused ones.
    """

    name: str
    kind: Kind
    settings: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    shown: Mapping[str, Sequence[object]] = field(default_factory=dict)
    backend: attention.Backend | None = None
    lora: bool = False

    @property
    def is_quantized(self) -> bool:
        return "quantized_compute" in self.settings

    @property
    def is_cached(self) -> bool:
        return "step_cache" in self.fields

    def spec(self, scale: Scale) -> ModelSpec:
        """Turbo runs on weights into which its LoRAs were fused, but for the row that puts them on."""
        fused = self.kind == "turbo" and not self.lora
        return with_distilled_fused(scale.spec) if fused else scale.spec


_EXACT = {"enable_sage_attention": False}
ROWS: tuple[Row, ...] = (
    Row(
        "exact", "guided", _EXACT, shown={"quantized_compute": ["off"], "step_cache": ["off"], "torch_compile": [False]}
    ),
    *(Row(each.name, "guided", shown={"attention_backend": [each.name]}, backend=each) for each in attention.BACKENDS),
    Row("quantized", "guided", {**_EXACT, "quantized_compute": "on"}, shown={"quantized_compute": ["fp8", "int8"]}),
    Row("compile", "guided", {**_EXACT, "enable_torch_compile": True}, shown={"torch_compile": [True]}),
    Row("cache_balanced", "guided", _EXACT, {"step_cache": "balanced"}, {"step_cache": ["balanced"]}),
    Row("cache_fast", "guided", _EXACT, {"step_cache": "fast"}, {"step_cache": ["fast"]}),
    Row("turbo", "turbo", shown={"distilled_weights": ["fused"]}),
    Row("turbo_lora", "turbo", shown={"distilled_weights": ["random"]}, lora=True),
    Row("decode", "decode", _EXACT),
    Row("encode", "encode", _EXACT),
)


@dataclass
class Measured:
    """What came of a row; seconds. `video_s`: from the prompt to the stored file, or of the one stage of the row.

    `reason` says why there is nothing, where there is nothing. `extrapolated`: from how many steps of each expert.
    """

    row: str
    video_s: float | None = None
    generate_s: float | None = None
    step_s: float | None = None
    warm_up_s: float | None = None
    peak_bytes: int | None = None
    extrapolated: int | None = None
    timings: dict[str, float] = field(default_factory=dict)
    steps_s: list[float] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None


def request(row: Row, scale: Scale, *, take: int, steps: int | None = None, even: bool = False) -> VideoRequest:
    """The row's request. steps: of a guided one; even: half of them on each expert."""
    fields: dict[str, Any] = {
        "prompt": _PROMPT.format(take),
        "seed": take,
        "num_frames": scale.num_frames,
        **row.fields,
    }
    if row.kind == "turbo":
        fields["quality_preset"] = "turbo"
    else:  # Wan's own sampling
        count = scale.steps if steps is None else steps
        fields |= {"num_inference_steps": count, "guidance_scale": 4.0, "guidance_scale_2": 3.0}
        if even:
            fields["flow_shift"] = _EVEN_SHIFT
    (video,) = parse({**fields, "enhance_prompt": False}, default_job_id="benchmark").videos
    return replace(video, width=scale.width, height=scale.height)


def not_in_effect(row: Row, parameters: Mapping[str, Any]) -> str | None:
    """Why the figures of a row do not count: the worker itself says that it did something else. None where they do."""
    wrong = [
        f"{name} was {parameters.get(name)}" for name, any_of in row.shown.items() if parameters.get(name) not in any_of
    ]
    return f"not in effect: {', '.join(wrong)}" if wrong else None


def not_to_be_had(row: Row, device: torch.device) -> str | None:
    """Why an attention backend cannot be tried here, asked before anything is loaded; None where it can be."""
    if row.backend is None or row.backend.name == attention.NATIVE:
        return None
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return row.backend.missing(Setup(Settings(), device, dtype))
