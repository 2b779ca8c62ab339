"""The GPU's owner: turns a request into latents, and latents into frames.

Everything here blocks and runs in one thread at a time; a lock holds a second caller off until the first has really
ended. A run that is stopped ends after the step in hand, and the next run is exact. Where memory runs out, the video is
tried once more under the next lower plan.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from worker import decode, loading, text
from worker.acceleration import lora, schedules
from worker.artifacts import Conditioning
from worker.errors import ModelUnavailable, OutOfMemory, Unsupported
from worker.loaded import Loaded, LoadedModels, ModelSource
from worker.loras import LoraFile
from worker.memory import MemoryPlan, Shape
from worker.models import ModelSpec
from worker.modes import MODES
from worker.modes.base import Sampling
from worker.planning import Planner
from worker.request import VideoRequest
from worker.stop import Stop

logger = logging.getLogger(__name__)

# Normalised latents of any picture have a standard deviation near 1.
_BLANK_STD = 1e-3


class DeviceLost(Exception):
    """The GPU is in a state that only a new process can leave: an assert, an illegal access, an ECC error."""


class Watcher(Protocol):
    """Told what the engine is doing. Called from the engine's thread; must return at once."""

    def loading(self, fraction: float) -> None: ...

    def generating(self, fraction: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Rendering:
    """A generated video, still as latents.

    `frames` decodes: uint8 [H, W, 3] one by one; consume it in the thread that generated. `seconds` holds load, text
    and generate; `warnings` what the caller should know; `parameters` what the engine settled itself.
    """

    frames: Callable[[], Iterator[np.ndarray]]
    width: int
    height: int
    num_frames: int
    seconds: dict[str, float]
    warnings: tuple[str, ...]
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Given:
    """What one call of `generate` was given."""

    request: VideoRequest
    spec: ModelSpec
    prompt: str
    conditioning: Conditioning
    adapters: tuple[lora.Adapter, ...]
    watcher: Watcher
    stop: Stop


class Engine:
    """Serves the models of `catalogue`; `source` finds their folders, `planner` fits them on the device."""

    def __init__(self, source: ModelSource, catalogue: Sequence[ModelSpec], planner: Planner) -> None:
        self._catalogue = tuple(catalogue)
        self._planner = planner
        self._device = planner.device
        self._dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        self._lock = threading.Lock()
        self._text = text.TextEmbeddings(self._device, self._dtype)
        self.models = LoadedModels(
            source, device=self._device, dtype=self._dtype, gpu=planner.gpu, host_bytes=planner.host_bytes
        )
        loading.quiet_libraries()

    @property
    def gpu(self) -> str:
        """The name of the device, as results report it."""
        return torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu"

    def spec_for(self, request: VideoRequest) -> ModelSpec:
        """The model that serves a request. Raises Unsupported where none does."""
        model, mode = request.model, request.mode
        spec = next((spec for spec in self._catalogue if spec.name == model and mode in spec.modes), None)
        if spec is None or mode not in MODES:
            names = {name for spec in self._catalogue if spec.name == model for name in spec.modes} & set(MODES)
            served = ", ".join(sorted(names))
            raise Unsupported(f"model {model} does not serve {mode} on this worker; it serves {served}")
        if request.quality_preset == "turbo" and not spec.turbo:
            raise Unsupported(
                f"turbo is not served for {mode} with model {model} on this worker; use draft",
                path=request.at("quality_preset"),
            )
        return spec

    def plan_for(self, request: VideoRequest) -> MemoryPlan:
        """How the request would be fitted on the device; its size must be settled.

        Raises InvalidRequest, before any work, where it does not fit at all; the message says what would.
        """
        return self._planner.plan(self.spec_for(request), _shape(request), path=request.at("width"))

    def preload(self, keys: Sequence[str], stop: Stop) -> None:
        """Load the models named by key (`i2v`, `t2v`, `5b`) before the first job, as for a video of 832x480x81."""
        with self._lock:
            for spec in self._catalogue:
                if spec.key in keys:
                    self.models.use(spec, self._planner.standard(spec), stop)

    @torch.no_grad()
    def generate(
        self,
        request: VideoRequest,
        prompt: str,
        conditioning: Conditioning,
        *,
        loras: Sequence[LoraFile] = (),
        watcher: Watcher,
        stop: Stop,
    ) -> Rendering:
        """Make the latents of one video.

        `request` has its size settled; `prompt` is the text as it goes to the text encoder; `loras` are the files of
        the request's LoRAs in their order. Raises the reason of
        `stop` within one step of its being raised, ModelUnavailable, Unsupported, OutOfMemory.
        """
        spec, plan = self.spec_for(request), self.plan_for(request)
        given = _Given(request, spec, prompt, conditioning, _adapters(request, loras), watcher, stop)
        with self._lock:
            rendering = self._try(given, plan)
            if rendering is not None:
                return rendering
            # Here, outside of any except block, the traceback no longer holds the tensors of the first try.
            lower = self._planner.lower(plan, spec, _shape(request))
            self.models.drop(spec.key)
            _empty_cache()
            if lower is not None:
                logger.warning("out of memory: trying again as %s", lower.rung)
                rendering = self._try(given, lower)
            if rendering is None:
                self.models.drop(spec.key)
                _empty_cache()
                raise OutOfMemory(
                    "the GPU's memory does not hold this video: send a smaller size or fewer frames",
                    path=request.at("num_frames"),
                )
            return rendering

    def _try(self, given: _Given, plan: MemoryPlan) -> Rendering | None:
        """One try under `plan`; None where memory ran out."""
        try:
            return self._generate(given, plan)
        except torch.OutOfMemoryError:
            return None
        except torch.AcceleratorError as failure:
            raise DeviceLost("the device failed while generating") from failure

    def _generate(self, given: _Given, plan: MemoryPlan) -> Rendering:
        request, spec, stop = given.request, given.spec, given.stop
        seconds: dict[str, float] = {}
        began = time.perf_counter()
        stop.check()
        given.watcher.loading(0.0)
        loaded = self.models.use(spec, plan, stop)
        seconds["load"] = time.perf_counter() - began

        began = time.perf_counter()
        guided = max(request.guidance_scale, request.guidance_scale_2) > 1
        embeds = self._text.embeds(loaded, given.prompt)
        negative = self._text.embeds(loaded, request.negative_prompt) if guided else None
        tokens = text.count_tokens(loaded, given.prompt)
        seconds["text"] = time.perf_counter() - began

        began = time.perf_counter()
        schedule = schedules.choose(request, spec, loaded.components.scheduler_config)
        sampling = self._sampling(given, embeds, negative)
        given.watcher.generating(0.0)
        with lora.applied(loaded.components, given.adapters) as lora_notes:
            latents = self._denoise(loaded, request, schedule, sampling, given.conditioning)
        stop.check()
        seconds["generate"] = time.perf_counter() - began
        moves, swap_s = loaded.residency.take_cost()
        if moves:
            logger.info("weights came to the device %d times in %.1f s", moves, swap_s)
        return Rendering(
            frames=lambda: self._decode(loaded, latents, stop),
            width=sampling.width,
            height=sampling.height,
            num_frames=request.num_frames,
            seconds=seconds,
            warnings=(*_token_warning(request, tokens), *schedule.warnings, *lora_notes),
            parameters={
                "scheduler": type(schedule.scheduler).__name__,
                "flow_shift": schedule.flow_shift,
                "boundary_ratio": spec.boundary_ratio,
                "dtype": str(self._dtype).removeprefix("torch."),
                "memory_plan": str(plan.rung),
            },
        )

    def _denoise(
        self,
        loaded: Loaded,
        request: VideoRequest,
        schedule: schedules.Schedule,
        sampling: Sampling,
        conditioning: Conditioning,
    ) -> torch.Tensor:
        mode = MODES[request.mode]
        pipeline = mode.pipeline(**loaded.components.for_pipeline(schedule.scheduler))
        pipeline.run_device = self._device
        pipeline.set_progress_bar_config(disable=True)
        vae = loaded.components.shared.vae
        if request.mode != "text_to_video":
            loaded.residency.bring(vae)
        with _tiled(vae) if loaded.plan.vae_tiling else nullcontext():
            latents = mode.latents(pipeline, sampling, conditioning)
        # A video of NaN, or of nothing, encodes without complaint, as black: it must never reach a customer.
        if not bool(torch.isfinite(latents).all()):
            raise FloatingPointError("the latents hold NaN or infinity")
        if float(latents.std()) < _BLANK_STD:
            raise FloatingPointError("the latents are blank")
        return latents

    def _sampling(self, given: _Given, embeds: torch.Tensor, negative: torch.Tensor | None) -> Sampling:
        request = given.request
        shape = _shape(request)

        def on_step(done: int, of: int) -> None:
            given.stop.check()
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

    def _decode(self, loaded: Loaded, latents: torch.Tensor, stop: Stop) -> Iterator[np.ndarray]:
        """Frames of `latents`. Where memory runs out, decode anew in tiles and go on behind the frames that are out."""
        vae = loaded.components.shared.vae
        given = 0
        with self._lock:
            loaded.residency.bring(vae)
            for tiled in (True,) if loaded.plan.vae_tiling else (False, True):
                try:
                    with closing(decode.frames(vae, latents, tiled=tiled)) as frames:
                        for number, frame in enumerate(frames):
                            stop.check()
                            if number >= given:
                                given += 1
                                yield frame
                    return
                except torch.AcceleratorError as failure:
                    raise DeviceLost("the device failed while decoding") from failure
                except torch.OutOfMemoryError:
                    logger.warning("out of memory while decoding, tiled: %s", tiled)
                _empty_cache()
        raise OutOfMemory("the GPU's memory does not hold the decoding of this video: send a smaller size")


def require_gpu() -> None:
    """Raise ModelUnavailable where no CUDA device is at hand: the platform has no fallback."""
    if not torch.cuda.is_available():
        raise ModelUnavailable("no CUDA GPU is visible to this worker: choose a GPU type for the endpoint")


def _adapters(request: VideoRequest, files: Sequence[LoraFile]) -> tuple[lora.Adapter, ...]:
    return tuple(
        lora.Adapter(file.path, file.name, wanted.scale, wanted.expert, request.at(f"loras[{number}].source"))
        for number, (wanted, file) in enumerate(zip(request.loras, files, strict=True))
    )


def _shape(request: VideoRequest) -> Shape:
    if request.width is None or request.height is None:
        raise ValueError("the size of the video must be settled before generation")
    return Shape(request.width, request.height, request.num_frames, loras=len(request.loras))


@contextmanager
def _tiled(vae: AutoencoderKLWan) -> Iterator[None]:
    """Encode in tiles, for a conditioning image or video that would not fit otherwise."""
    vae.enable_tiling()
    try:
        yield
    finally:
        vae.disable_tiling()


def _empty_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _token_warning(request: VideoRequest, tokens: int) -> tuple[str, ...]:
    if tokens <= text.MAX_TOKENS:
        return ()
    return (f"{request.at('prompt')}: {tokens} tokens; the text encoder reads the first {text.MAX_TOKENS}",)
