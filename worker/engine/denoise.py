"""One video's denoising: text embeddings, schedule, techniques, steps; from a request to latents.

Runs in the engine's thread, under its lock, on a model that is loaded already.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKLWan

from worker.base.stop import Stop
from worker.engine import embeddings
from worker.engine.distributed import ALONE, Crew
from worker.engine.models.pool import Loaded
from worker.engine.modes import MODES, schedules
from worker.engine.modes.base import Conditioning, Sampling
from worker.engine.techniques import Run, Techniques, base
from worker.request import ModelSpec, VideoRequest
from worker.request.plan import MemoryPlan, Shape
from worker.weights.loras import DistilledFiles, LoraFile

logger = logging.getLogger(__name__)

# Normalised latents of any picture have a standard deviation near 1.
_BLANK_STD = 1e-3


class Watcher(Protocol):
    """Told what the engine is doing. Called from the engine's thread; must return at once."""

    def loading(self, fraction: float) -> None: ...

    def generating(self, fraction: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Given:
    """What is to be made: `request` has its size settled, `prompt` is the text as it goes to the text encoder.

    `loras` are the files of the request's LoRAs in their order, `distilled` those of turbo, where it needs any. `later`
    are texts that the next videos of the job need of the same model: they are read while the text encoder is here.
    """

    request: VideoRequest
    spec: ModelSpec
    prompt: str
    conditioning: Conditioning
    loras: Sequence[LoraFile]
    distilled: DistilledFiles | None
    watcher: Watcher
    stop: Stop
    later: tuple[str, ...] = ()

    @property
    def shape(self) -> Shape:
        return shape_of(self.request, distilled=self.distilled is not None)


@dataclass(frozen=True, slots=True)
class Denoised:
    """Normalised latents, float32 [1, z_dim, T, h, w] on the device, and what is to be told of their making.

    `seconds` holds text and generate; `parameters` what was settled here. `half_decode`: decode them in bf16.
    """

    latents: torch.Tensor
    seconds: dict[str, float]
    warnings: tuple[str, ...]
    parameters: dict[str, Any]
    half_decode: bool = False


class Denoiser:
    """Not thread-safe: the engine calls it under its lock."""

    def __init__(self, device: torch.device, dtype: torch.dtype, techniques: Techniques, crew: Crew = ALONE) -> None:
        self._crew = crew
        self._device = device
        self._dtype = dtype
        self._techniques = techniques
        self._text = embeddings.TextEmbeddings(device, dtype)

    def run(self, given: Given, loaded: Loaded, plan: MemoryPlan) -> Denoised:
        """Latents of one video, by the weights of `loaded`, which are arranged as `plan` says.

        Raises the reason of the stop within one step of its being raised, FloatingPointError where the latents are
        no picture, and what the techniques raise before the first step."""
        request = given.request
        began = time.perf_counter()
        guided = max(request.guidance_scale, request.guidance_scale_2) > 1
        embeds = self._text.embeds(loaded, given.prompt)
        negative = self._text.embeds(loaded, request.negative_prompt) if guided else None
        tokens = embeddings.count_tokens(loaded, given.prompt)
        for waiting in given.later[: embeddings.AHEAD]:
            given.stop.check()
            self._text.embeds(loaded, waiting)
        text_s = time.perf_counter() - began

        began = time.perf_counter()
        schedule = schedules.choose(request, given.spec, loaded.components.scheduler_config)
        run = Run(request, given.spec, plan, loaded.components, _adapters(given), given.distilled)
        given.watcher.generating(0.0)
        with self._techniques.applied(run):
            latents = self._steps(loaded, plan, schedule, _sampling(given, run, self._crew, embeds, negative), given)
        given.stop.check()
        generate_s = time.perf_counter() - began
        moves, swap_s = loaded.residency.take_cost()
        if moves:
            logger.info("weights came to the device %d times in %.1f s", moves, swap_s)
        return Denoised(
            latents,
            {"text": text_s, "generate": generate_s},
            (*_token_warning(request, tokens), *schedule.warnings, *run.warnings),
            {
                "scheduler": type(schedule.scheduler).__name__,
                "flow_shift": schedule.flow_shift,
                "boundary_ratio": given.spec.boundary_ratio,
                "dtype": str(self._dtype).removeprefix("torch."),
                "memory_plan": str(plan.rung),
                **run.parameters,
            },
            run.half_decode,
        )

    def _steps(
        self, loaded: Loaded, plan: MemoryPlan, schedule: schedules.Schedule, sampling: Sampling, given: Given
    ) -> torch.Tensor:
        mode = MODES[given.request.mode]
        pipeline = mode.pipeline(**loaded.components.for_pipeline(schedule.scheduler))
        pipeline.run_device = self._device
        pipeline.set_progress_bar_config(disable=True)
        vae = loaded.components.shared.vae
        if given.request.mode != "text_to_video":
            loaded.residency.bring(vae)
        with _tiled(vae) if plan.vae_tiling else nullcontext():
            latents = mode.latents(pipeline, sampling, given.conditioning)
        # A video of NaN, or of nothing, encodes without complaint, as black: it must never reach a customer.
        if not bool(torch.isfinite(latents).all()):
            raise FloatingPointError("the latents hold NaN or infinity")
        if float(latents.std()) < _BLANK_STD:
            raise FloatingPointError("the latents are blank")
        return latents


def shape_of(request: VideoRequest, *, distilled: bool) -> Shape:
    """What the memory plan goes by; the size must be settled. `distilled`: turbo puts LoRAs of its own on."""
    if request.width is None or request.height is None:
        raise ValueError("the size of the video must be settled before generation")
    cached = request.step_cache != "off" and request.quality_preset != "turbo"
    loras = len(request.loras) + distilled
    return Shape(request.width, request.height, request.num_frames, loras, cached)


def _adapters(given: Given) -> list[base.Adapter]:
    request = given.request
    return [
        base.Adapter(file.path, file.name, wanted.scale, wanted.expert, request.at(f"loras[{number}].source"))
        for number, (wanted, file) in enumerate(zip(request.loras, given.loras, strict=True))
    ]


def _sampling(given: Given, run: Run, crew: Crew, embeds: torch.Tensor, negative: torch.Tensor | None) -> Sampling:
    request, shape = given.request, given.shape

    def on_step(done: int, of: int) -> None:
        run.steps_done, run.steps = done, of
        crew.step(given.stop)
        given.watcher.generating(done / of)

    return Sampling(
        width=shape.width,
        height=shape.height,
        num_frames=request.num_frames,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        guidance_scale_2=None if given.spec.boundary_ratio is None else request.guidance_scale_2,
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
