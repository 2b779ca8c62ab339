"""How a row of `benchmarks.gpu` is made and timed.

A video goes the production way from the prompt to the stored file: `worker.jobs.make`, then a local storage.
"""

from __future__ import annotations

import statistics
import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_rig import Rig
from benchmarks.gpu_rows import Measured, Row, not_in_effect, request
from worker.base.settings import Settings
from worker.base.stop import Stop
from worker.delivery.storage import video_key
from worker.delivery.storage.local import LocalStorage
from worker.engine import decode
from worker.engine.modes import schedules
from worker.engine.techniques import image_encode
from worker.engine.techniques.step_cache import in_full
from worker.jobs import make as making
from worker.jobs.report import VideoReport
from worker.request import VideoRequest
from worker.request.catalogue import T2V_A14B

_TRAIN_TIMESTEPS = 1000


class StepClock:
    """In the place of a job's progress: the moments at which each denoising step really was over, on the GPU too."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._moments: list[float] = []

    def stage(self, _index: int, status: str, _fraction: float = 0.0, **_: int | None) -> None:
        if status == "generating":
            self._rig.synchronize()
            self._moments.append(time.perf_counter())

    @property
    def steps_s(self) -> list[float]:
        return [after - before for before, after in pairwise(self._moments)]


class Studio:
    """Makes the videos of one row on one engine. Its engine is what `making.make` takes for the worker's."""

    def __init__(self, row: Row, rig: Rig) -> None:
        self.row, self.rig = row, rig
        self.spec = row.spec(rig.scale)
        folders: dict[str, Any] = {"output_dir": rig.home / "outputs"}
        if row.name == "compile":
            folders["model_cache_dir"] = rig.home / "cache"  # what an earlier run compiled must not help
        settings = Settings(**folders, **row.settings)
        self.engine = rig.engine(settings, self.spec, backend=row.backend, as_fp8=row.is_quantized)
        self._storage = LocalStorage(rig.home / "outputs")
        self._distilled = rig.distilled_loras() if row.lora else None

    def generate(self, *arguments: Any, **options: Any) -> Any:
        return self.rig.clip.in_place_of(self.engine.generate(*arguments, **options))

    def close(self) -> None:
        self.rig.release(self.engine, self.spec)

    def make(self, video: VideoRequest, folder: Path) -> Measured:
        """One video, text encoding included: its prompt must be new to the engine."""
        clock = StepClock(self.rig)
        report = VideoReport(video, clock)  # type: ignore[arg-type]
        given = replace(self.engine.video(video), distilled=self._distilled)
        made = making.make(given, folder, report, engine=self, stop=Stop())  # type: ignore[arg-type]
        with report.lapped("upload"):
            self._storage.store(made.file, video_key("benchmark", video.index, datetime.now(UTC).date()))
        timings = report.timings()
        return Measured(
            self.row.name,
            video_s=timings["total"],
            generate_s=timings["generate"],
            step_s=statistics.median(clock.steps_s),
            peak_bytes=made.peak_vram_bytes,
            timings=timings,
            steps_s=clock.steps_s,
            parameters=dict(made.generated.parameters),
        )


def video(row: Row, rig: Rig, *, steps: int | None, repeats: int) -> Measured:
    """A warm-up, then one guided video (with `steps`: that many of each expert, and the rest by their medians), or the
    median of `repeats` of turbo."""
    studio = Studio(row, rig)
    try:
        short = None if row.kind == "turbo" else 2
        began = time.perf_counter()
        studio.make(request(row, rig.scale, take=0, steps=short, even=True), rig.home)
        warm_up_s = time.perf_counter() - began
        if row.kind == "turbo":
            takes = [studio.make(request(row, rig.scale, take=take), rig.home) for take in range(1, repeats + 1)]
            found = sorted(takes, key=lambda each: each.timings["total"])[len(takes) // 2]
        elif steps is None:
            found = studio.make(request(row, rig.scale, take=1), rig.home)
        else:
            part = request(row, rig.scale, take=1, steps=2 * steps, even=True)
            found = whole_of(studio.make(part, rig.home), row, part, request(row, rig.scale, take=1))
            found.extrapolated = steps
    finally:
        studio.close()
    found.warm_up_s = warm_up_s
    found.reason = not_in_effect(row, found.parameters)
    return found


def whole_of(part: Measured, row: Row, measured: VideoRequest, wanted: VideoRequest) -> Measured:
    """The seconds of the video `wanted`, from those of `measured`: each step as the median of its kind.

    A kind is an expert, and whether the step cache leaves the step alone. What is beside the steps counts once.
    """
    seconds: dict[tuple[str, bool], list[float]] = {}
    for kind, taken in zip(kinds_of_steps(row, measured), part.steps_s, strict=True):
        seconds.setdefault(kind, []).append(taken)
    medians = {kind: statistics.median(each) for kind, each in seconds.items()}
    beside = max(0.0, part.timings["generate"] - sum(medians[kind] for kind in kinds_of_steps(row, measured)))
    generate_s = beside + sum(medians[kind] for kind in kinds_of_steps(row, wanted))
    video_s = part.timings["total"] - part.timings["generate"] + generate_s
    return replace(part, video_s=video_s, generate_s=generate_s)


def kinds_of_steps(row: Row, video: VideoRequest) -> list[tuple[str, bool]]:
    """By the schedule that the worker runs for a guided video."""
    config = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "num_train_timesteps": _TRAIN_TIMESTEPS}
    scheduler = schedules.choose(video, T2V_A14B, config).scheduler
    scheduler.set_timesteps(video.num_inference_steps)
    boundary = (T2V_A14B.boundary_ratio or 0.0) * _TRAIN_TIMESTEPS
    experts = ["high" if timestep >= boundary else "low" for timestep in scheduler.timesteps.tolist()]
    # The cache computes an expert's first step, too: it has nothing to begin with.
    return [
        (expert, not row.is_cached or in_full(step, len(experts)) or expert not in experts[:step])
        for step, expert in enumerate(experts)
    ]


def stage(row: Row, rig: Rig, *, repeats: int) -> Measured:
    """The median of `repeats` decodes, or encodes of a conditioning video, by the worker's VAE, after a warm-up."""
    studio = Studio(row, rig)
    try:
        plan = studio.engine.video(request(row, rig.scale, take=0)).plan
        loaded = studio.engine.models.use(studio.spec, plan, Stop())
        vae = loaded.components.shared.vae
        loaded.residency.bring(vae)
        inputs = vae_input(row, rig)
        seconds = []
        for _ in range(repeats + 1):
            rig.reset_peak()
            began = time.perf_counter()
            if row.kind == "decode":
                with closing(decode.frames(vae, inputs, tiled=plan.vae_tiling)) as frames:
                    for _frame in frames:
                        pass
            else:
                with torch.no_grad():
                    image_encode.encode(vae, inputs, image_encode.Passes())
            rig.synchronize()
            seconds.append(time.perf_counter() - began)
        peak = rig.peak_bytes()
    finally:
        studio.close()
    return Measured(row.name, statistics.median(seconds[1:]), warm_up_s=seconds[0], peak_bytes=peak)


def vae_input(row: Row, rig: Rig) -> torch.Tensor:
    """Normalised latents to decode; or a picture and blank frames, as image-to-video encodes them."""
    scale = rig.scale
    generator = torch.Generator().manual_seed(0)
    if row.kind == "decode":
        size = (1, scale.size.latent_channels, scale.shape.latent_frames, scale.height // 8, scale.width // 8)
        return torch.randn(size, generator=generator).to(rig.device)
    video = torch.zeros(1, 3, scale.num_frames, scale.height, scale.width)
    video[:, :, 0] = torch.rand(3, scale.height, scale.width, generator=generator) * 2 - 1
    return video.to(rig.device)
