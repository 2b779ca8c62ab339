"""What a command is about to do: the video, the memory plan, how long it should take, and what that costs."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from worker.base.errors import Unsupported
from worker.base.settings import Settings
from worker.cli.terminal import dollars, row
from worker.media import inputs
from worker.net import Opener
from worker.request import CATALOGUE, ModelSpec, VideoRequest, choose, prompt
from worker.request.catalogue import DEMO_CATALOGUE
from worker.request.plan import Gpu, MemoryPlan, Planner, Shape
from worker.request.plan import duration as estimate
from worker.request.plan.duration import Estimate, Span

_GB = 1e9
_DEMO = "the built-in demo model takes seconds: no estimate"
_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits")


@dataclass(frozen=True, slots=True)
class Overview:
    """`request` has its size settled. `plan` and `estimate` are None where there is none; `notes` say why."""

    request: VideoRequest
    spec: ModelSpec
    gpu: Gpu | None
    plan: MemoryPlan | None
    estimate: Estimate | None
    gpu_hourly_usd: float | None
    notes: tuple[str, ...]

    @property
    def prompt(self) -> str:
        return prompt.of_request(self.request)

    def lines(self) -> list[str]:
        """What a person reads."""
        video = self.request
        guidance = f"guidance {video.guidance_scale:g}"
        if self.spec.boundary_ratio is not None and video.guidance_scale_2 != video.guidance_scale:
            guidance += f" and {video.guidance_scale_2:g}"
        rows = [
            (
                "video",
                f"{video.mode}, {video.width}x{video.height}, {video.total_frames} frames at {video.fps} fps "
                f"({video.total_frames / video.fps:.2f} s)",
            ),
            ("model", f"{self._models()}, {video.num_inference_steps} steps, {guidance}, seed {video.seed}"),
            ("prompt", self.prompt),
            *([("memory", self._memory(self.plan))] if self.plan is not None else []),
            *_estimated(self.estimate, self.gpu_hourly_usd),
            *(("note", note) for note in self.notes),
        ]
        return [line for label, text in rows for line in row(label, text)]

    def _models(self) -> str:
        return " and ".join(spec.version for spec in estimate.models_of(self.request, self.spec))

    def _memory(self, plan: MemoryPlan) -> str:
        if self.gpu is None or not estimate.is_published(self.spec):
            return str(plan.rung)
        peak, budget = plan.estimated_peak_bytes / _GB, self.gpu.budget_bytes / _GB
        return f"{plan.rung}: {peak:.0f} of {budget:.0f} GB on {self.gpu.name}"

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints of a dry run."""
        video, made = self.request, self.estimate
        return {
            "mode": video.mode,
            "model_version": self.spec.version,
            "resolution": f"{video.width}x{video.height}",
            "num_frames": video.total_frames,
            "fps": video.fps,
            "num_inference_steps": video.num_inference_steps,
            "seed": video.seed,
            "prompt": self.prompt,
            "gpu": self.gpu.name if self.gpu is not None else None,
            "memory_plan": str(self.plan.rung) if self.plan is not None else None,
            "estimate": _as_dict(made, self.gpu_hourly_usd) if made is not None else None,
            "notes": list(self.notes),
        }


def _estimated(made: Estimate | None, gpu_hourly_usd: float | None) -> list[tuple[str, str]]:
    if made is None:
        return []
    rows = [
        ("estimate", f"{duration(made.total)} on {made.gpu}, {made.tflop:,.0f} TFLOP in {made.forwards} passes"),
        ("", f"and {duration(made.load)} before, to load the model from a network volume"),
    ]
    if gpu_hourly_usd is not None:
        spent = estimate.cost_usd(made.total, gpu_hourly_usd)
        loading = estimate.cost_usd(made.load, gpu_hourly_usd)
        rows.append(("cost", f"{_between(spent)}, loading {_between(loading)} (${gpu_hourly_usd:g} an hour)"))
    return rows


def _as_dict(made: Estimate, gpu_hourly_usd: float | None) -> dict[str, Any]:
    def pair(span: Span, digits: int = 1) -> list[float]:
        return [round(span.low, digits), round(span.high, digits)]

    stages: Mapping[str, Span] = {**made.stages, "total": made.total, "load": made.load}
    cost = None if gpu_hourly_usd is None else pair(estimate.cost_usd(made.total, gpu_hourly_usd), 4)
    return {
        "tflop": round(made.tflop),
        "seconds": {name: pair(span) for name, span in stages.items()},
        "cost_usd": cost,
    }


def _between(span: Span) -> str:
    return f"{dollars(span.low)} to {dollars(span.high)}"


def duration(span: Span) -> str:
    """`35 to 60 s`, `4.4 to 8.2 min`, `2.1 to 3.9 h`: in the unit that fits the larger end."""
    if span.high < 120:
        return f"{span.low:.0f} to {span.high:.0f} s"
    unit, name = (60, "min") if span.high < 7200 else (3600, "h")
    low, high = span.low / unit, span.high / unit
    digits = 0 if low >= 10 else 1
    return f"{low:.{digits}f} to {high:.{digits}f} {name}"


def settled(
    video: VideoRequest, spec: ModelSpec, *, opener: Opener, max_pixels: int
) -> tuple[VideoRequest, tuple[str, ...]]:
    """The request with the size that it will have, and what is to be said about that.

    An image of this machine is decoded for it; a source behind a URL is not fetched. Raises what `load_image` raises.
    """
    if video.width is not None and video.height is not None:
        return video, ()
    source = video.reference_image_url
    is_here = source is not None and source[:5].lower() == "data:"
    followed = (spec.defaults.width, spec.defaults.height)
    if source is not None and is_here:
        followed = inputs.load_image(source, opener=opener, path=video.at("reference_image_url")).size
    width, height = inputs.size_following(followed, video, stride=spec.size_stride, max_pixels=max_pixels)
    kind = "video" if source is None else "image"
    note = f"the size follows the {kind}; the estimate is for {width}x{height}"
    return replace(video, width=width, height=height), () if is_here else (note,)


def of_plan(
    video: VideoRequest, spec: ModelSpec, gpu: Gpu | None, plan: MemoryPlan, settings: Settings, notes: tuple[str, ...]
) -> Overview:
    """`video` has its size settled."""
    made = estimate.of_request(video, spec, gpu, plan) if gpu is not None else None
    if not estimate.is_published(spec):
        notes = (*notes, _DEMO)
    elif made is None:
        notes = (*notes, f"no estimate: the speed of {gpu.name if gpu is not None else 'this CPU'} is not known")
    elif made.total.low + made.load.low > settings.job_timeout_s:
        notes = (*notes, f"JOB_TIMEOUT_S={settings.job_timeout_s:g} will stop it before it is done")
    elif made.total.high + made.load.high > settings.job_timeout_s:
        notes = (*notes, f"JOB_TIMEOUT_S={settings.job_timeout_s:g} may stop it before it is done")
    return Overview(video, spec, gpu, plan, made, settings.gpu_hourly_usd, (*video.warnings, *notes))


def dry(video: VideoRequest, settings: Settings, chosen: Gpu | None) -> Overview:
    """The overview without torch and without a look at the weights; for the `chosen` GPU, or the one that is here.

    Raises the errors of the contract for a request that no model serves, or that does not fit on the GPU.
    """
    gpu = _here() if chosen is None else chosen
    spec = choose(CATALOGUE, video)
    opener = Opener(settings.private_url_allowlist, local=True)
    video, notes = settled(video, spec, opener=opener, max_pixels=settings.max_pixels)
    if chosen is None and _is_demo(settings, gpu):
        hint = f"{_DEMO}; for the real one name a GPU, such as --gpu H100"
        demo = replace(spec, version="demo")
        return Overview(video, demo, gpu, None, None, settings.gpu_hourly_usd, (*video.warnings, *notes, hint))
    if gpu is None:
        raise Unsupported("no GPU is here: name one with --gpu, such as --gpu H100")
    plan = Planner(gpu, settings).plan(spec, Shape.of(video, spec), path=video.at("width"))
    return of_plan(video, spec, gpu, plan, settings, notes)


def catalogue(settings: Settings, chosen: Gpu | None) -> tuple[ModelSpec, ...]:
    """The models whose defaults a request has here, or on the `chosen` GPU."""
    return CATALOGUE if chosen is not None or not _is_demo(settings, _here()) else DEMO_CATALOGUE


def _is_demo(settings: Settings, gpu: Gpu | None) -> bool:
    return settings.model_profile == "demo" or (gpu is None and settings.model_profile is None)


def _here() -> Gpu | None:
    """The first GPU that the driver's own tool names; None where there is no such tool or GPU."""
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=10, check=True)
        name, mebibytes, capability = done.stdout.splitlines()[0].split(", ")
        major, minor = capability.split(".")
        return Gpu(name, int(mebibytes) * 1024**2, (int(major), int(minor)))
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None
