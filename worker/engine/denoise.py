"""One video's denoising: text embeddings, schedule, techniques, steps; from a request to latents.

Runs in the engine's thread, under its lock, on a model that is loaded already.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKLWan

from worker.base.errors import WorkerError
from worker.base.stop import Stop
from worker.engine import embeddings
from worker.engine.distributed import ALONE, Crew
from worker.engine.models.pool import Loaded
from worker.engine.modes import MODES, schedules
from worker.engine.modes.base import Estimate, Sampling, StepWatcher
from worker.engine.preview import Preview, copied
from worker.engine.preview_map import ColourMap, ColourMaps
from worker.engine.techniques import Run, Techniques, base
from worker.engine.video import Video
from worker.request import VideoRequest

logger = logging.getLogger(__name__)

# Normalised latents of any picture have a standard deviation near 1.
_BLANK_STD = 1e-3


class Watcher(Protocol):
    """Receives what the engine is doing. Called from the engine's thread; must return at once."""

    def loading(self, fraction: float) -> None:
        """Share of the weights that is loaded; 0.0 once at the start of each try of the video."""

    def generating(self, fraction: float) -> None:
        """Share of the denoising steps that are done."""

    def preview(self, preview: Preview) -> None:
        """An early look at the video, where the request asks for some."""


@dataclass(frozen=True, slots=True)
class Denoised:
    """Normalised latents, float32 [1, z_dim, T, h, w] on the device, and how they were made.

    `seconds` holds text and generate; `warnings` is for the caller; `parameters` are the values that the engine chose
    itself. `half_decode`: decode in bf16.
    """

    latents: torch.Tensor
    seconds: dict[str, float]
    warnings: tuple[str, ...]
    parameters: dict[str, Any]
    half_decode: bool = False


class Denoiser:
    """Not thread-safe: the engine calls it under its lock."""

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        techniques: Techniques,
        colour_maps: ColourMaps,
        crew: Crew = ALONE,
    ) -> None:
        self._colour_maps = colour_maps
        self._crew = crew
        self._device = device
        self._dtype = dtype
        self._techniques = techniques
        self._text = embeddings.TextEmbeddings(device, dtype)

    def run(self, video: Video, loaded: Loaded, watcher: Watcher, stop: Stop) -> Denoised:
        """Latents of one video, by the weights of `loaded`, which are arranged as the video's plan says.

        Raises the reason of `stop` within one step, FloatingPointError where the latents are no picture, and what the
        techniques raise before the first step.
        """
        request = video.request
        began = time.perf_counter()
        guided = request.is_guided
        embeds = self._text.embeds(loaded, video.prompt)
        negative = self._text.embeds(loaded, request.negative_prompt) if guided else None
        tokens = embeddings.count_tokens(loaded, video.prompt)
        for text in video.later[: embeddings.AHEAD]:
            stop.check()
            self._text.embeds(loaded, text)
        text_s = time.perf_counter() - began

        began = time.perf_counter()
        schedule = schedules.choose(request, video.spec, loaded.components.scheduler_config)
        run = Run(request, video.spec, video.plan, loaded.components, _adapters(video), video.distilled)

        colours, notes = self._colours(request, loaded)

        def on_step(done: int, of: int, estimate: Estimate) -> bool:
            run.steps_done, run.steps = done, of
            self._crew.step(stop)
            watcher.generating(done / of)
            looks = request.preview.steps(of)
            if colours is not None and done in looks:
                watcher.preview(Preview(done, request.preview.kind, request.fps, colours, *copied(estimate()[0])))
            return not request.preview.only or done < looks[-1]

        watcher.generating(0.0)
        with self._techniques.applied(run):
            latents = self._steps(video, loaded, schedule, _sampling(video, embeds, negative, on_step))
        stop.check()
        generate_s = time.perf_counter() - began
        if moves := loaded.residency.take_moves():
            logger.info("weights were sent to the device %d times", moves)
        return Denoised(
            latents,
            {"text": text_s, "generate": generate_s},
            (*_token_warning(request, tokens), *schedule.warnings, *run.warnings, *notes),
            {
                "scheduler": type(schedule.scheduler).__name__,
                "flow_shift": schedule.flow_shift,
                "boundary_ratio": video.spec.boundary_ratio,
                "dtype": str(self._dtype).removeprefix("torch."),
                "memory_plan": str(video.plan.rung),
                **run.parameters,
            },
            run.half_decode,
        )

    def _colours(self, request: VideoRequest, loaded: Loaded) -> tuple[ColourMap | None, tuple[str, ...]]:
        """What previews are drawn with; None where none are asked for, or with a warning where none can be drawn."""

        def vae() -> AutoencoderKLWan:
            loaded.residency.bring(shared.vae)
            return shared.vae

        shared = loaded.components.shared
        if request.preview.kind == "off":
            return None, ()
        try:
            return self._colour_maps.of(shared.vae_folder, vae), ()
        except (WorkerError, torch.AcceleratorError):
            raise
        except Exception:
            logger.exception("no map from latents to colours")
            return None, (f"{request.at('preview')}: none was made, this worker could not fit its map of colours",)

    def _steps(self, video: Video, loaded: Loaded, schedule: schedules.Schedule, sampling: Sampling) -> torch.Tensor:
        """The latents of the mode's own pipeline with this schedule, checked to be a picture."""
        mode = MODES[video.request.mode]
        pipeline = mode.pipeline(**loaded.components.for_pipeline(schedule.scheduler))
        pipeline.run_device = self._device
        pipeline.guidance_until = video.request.guidance_until
        pipeline.set_progress_bar_config(disable=True)
        vae = loaded.components.shared.vae
        if video.request.mode != "text_to_video":
            loaded.residency.bring(vae)
        with _tiled(vae) if video.plan.vae_tiling else nullcontext():
            latents = mode.latents(pipeline, sampling, video.conditioning)
        # A video of NaN, or of nothing, encodes without complaint, as black: it must never reach a customer.
        if not bool(torch.isfinite(latents).all()):
            raise FloatingPointError("the latents hold NaN or infinity")
        if float(latents.std()) < _BLANK_STD:
            raise FloatingPointError("the latents are blank")
        return latents


def _adapters(video: Video) -> list[base.Adapter]:
    request = video.request
    adapters = [
        base.Adapter(file.path, file.name, wanted.scale, wanted.expert, request.at(wanted.field))
        for wanted, file in zip(request.loras, video.loras, strict=True)
    ]
    if video.svi is not None:
        high, low = video.svi
        path = request.at("continuity")
        adapters.append(base.Adapter(high.path, high.name, 1.0, "high", path))
        adapters.append(base.Adapter(low.path, low.name, 1.0, "low", path))
    return adapters


def _sampling(video: Video, embeds: torch.Tensor, negative: torch.Tensor | None, on_step: StepWatcher) -> Sampling:
    request, shape = video.request, video.shape
    return Sampling(
        width=shape.width,
        height=shape.height,
        num_frames=request.num_frames,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        guidance_scale_2=None if video.spec.boundary_ratio is None else request.guidance_scale_2,
        prompt_embeds=embeds,
        negative_prompt_embeds=negative,
        # Drawn on the CPU, so that a seed gives the same noise on every GPU.
        generator=torch.Generator("cpu").manual_seed(request.seed),
        strength=request.strength,
        on_step=on_step,
    )


@contextmanager
def _tiled(vae: AutoencoderKLWan) -> Iterator[None]:
    """Encode in tiles, for a conditioning image or video that would not fit otherwise."""
    vae.enable_tiling()
    try:
        yield
    finally:
        vae.disable_tiling()


def _token_warning(request: VideoRequest, tokens: int) -> tuple[str, ...]:
    if tokens <= embeddings.MAX_TOKENS:
        return ()
    return (f"{request.at('prompt')}: {tokens} tokens; the text encoder reads the first {embeddings.MAX_TOKENS}",)
