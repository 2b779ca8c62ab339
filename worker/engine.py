"""The GPU's owner: loads models once, turns a request into latents, and latents into frames.

Everything here blocks and runs in one thread at a time; a lock holds a second caller off until the first has really
ended. A run that is stopped ends after the step in hand, and the next run is exact.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import diffusers
import numpy as np
import torch
import transformers
from diffusers import DiffusionPipeline, UniPCMultistepScheduler

from worker import decode, loading
from worker.acceleration import distilled
from worker.artifacts import Conditioning
from worker.errors import ModelUnavailable, Unsupported
from worker.models import ModelSpec
from worker.modes import MODES
from worker.modes.base import Sampling
from worker.request import VideoRequest
from worker.stop import Stop

logger = logging.getLogger(__name__)

# UMT5 reads this many tokens, in Wan's own code and in Diffusers'; what is beyond is cut.
MAX_TOKENS = 512
_CACHED_PROMPTS = 64


class ModelSource(Protocol):
    """Where the folder of a model comes from: a volume, the hub, or the built-in demo."""

    def folder(self, spec: ModelSpec, stop: threading.Event) -> Path: ...


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


class Engine:
    """Serves the models of `catalogue`; `source` finds their folders."""

    def __init__(
        self, source: ModelSource, catalogue: Sequence[ModelSpec], *, device: torch.device | None = None
    ) -> None:
        self._source = source
        self._catalogue = tuple(catalogue)
        self._device = device if device is not None else default_device()
        self._dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        self._lock = threading.Lock()
        self._components: dict[str, loading.Components] = {}
        self._embeds: OrderedDict[tuple[str, str], torch.Tensor] = OrderedDict()
        _quiet_libraries()

    @property
    def gpu(self) -> str:
        """The name of the device, as results report it."""
        return torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu"

    def spec_for(self, request: VideoRequest) -> ModelSpec:
        """The model that serves a request. Raises Unsupported where none does."""
        model, mode = request.model, request.mode
        if request.loras:
            raise Unsupported("this worker serves no LoRAs", path=request.at("loras"))
        spec = next((spec for spec in self._catalogue if spec.name == model and mode in spec.modes), None)
        if spec is None or mode not in MODES:
            served = sorted(
                {name for spec in self._catalogue if spec.name == model for name in spec.modes} & set(MODES)
            )
            raise Unsupported(f"model {model} does not serve {mode} on this worker; it serves {', '.join(served)}")
        if request.quality_preset == "turbo" and not spec.turbo:
            raise Unsupported(
                f"turbo is not served for {mode} with model {model} on this worker; use draft",
                path=request.at("quality_preset"),
            )
        return spec

    def preload(self, keys: Sequence[str], stop: Stop) -> None:
        """Load the models named by key (`i2v`, `t2v`, `5b`) before the first job."""
        with self._lock:
            for spec in self._catalogue:
                if spec.key in keys:
                    self._load(spec, stop)

    @torch.no_grad()
    def generate(
        self, request: VideoRequest, prompt: str, conditioning: Conditioning, *, watcher: Watcher, stop: Stop
    ) -> Rendering:
        """Make the latents of one video.

        `request` has its size settled; `prompt` is the text as it goes to the text encoder. Raises the reason of
        `stop` within one step of its being raised, ModelUnavailable, Unsupported.
        """
        spec = self.spec_for(request)
        with self._lock:
            started = time.perf_counter()
            stop.check()
            watcher.loading(0.0)
            components = self._load(spec, stop)
            loaded = time.perf_counter()
            guided = max(request.guidance_scale, request.guidance_scale_2) > 1
            tokens = self._count_tokens(components, prompt)
            embeds = self._embed(components, spec, prompt)
            negative = self._embed(components, spec, request.negative_prompt) if guided else None
            embedded = time.perf_counter()
            schedule = _schedule(request, spec, components)
            sampling = self._sampling(request, spec, embeds, negative, watcher, stop)
            mode = MODES[request.mode]
            pipeline = mode.pipeline(**components.for_pipeline(schedule.scheduler))
            pipeline.set_progress_bar_config(disable=True)
            watcher.generating(0.0)
            latents = self._run(mode.latents, pipeline, sampling, conditioning)
            stop.check()
            generated = time.perf_counter()
        width, height = sampling.width, sampling.height
        return Rendering(
            frames=lambda: self._decode(components, latents, stop),
            width=width,
            height=height,
            num_frames=request.num_frames,
            seconds={"load": loaded - started, "text": embedded - loaded, "generate": generated - embedded},
            warnings=(*_token_warning(request, tokens), *schedule.warnings),
            parameters={
                "scheduler": type(schedule.scheduler).__name__,
                "flow_shift": schedule.flow_shift,
                "boundary_ratio": spec.boundary_ratio,
                "dtype": str(self._dtype).removeprefix("torch."),
            },
        )

    def _run(
        self,
        latents_of: Callable[[DiffusionPipeline, Sampling, Conditioning], torch.Tensor],
        pipeline: DiffusionPipeline,
        sampling: Sampling,
        conditioning: Conditioning,
    ) -> torch.Tensor:
        try:
            latents = latents_of(pipeline, sampling, conditioning)
        finally:
            pipeline.maybe_free_model_hooks()
        # A video of NaN encodes without complaint, as black: it must never reach a customer.
        if not bool(torch.isfinite(latents).all()):
            raise FloatingPointError("the latents hold NaN or infinity")
        return latents

    def _sampling(
        self,
        request: VideoRequest,
        spec: ModelSpec,
        embeds: torch.Tensor,
        negative: torch.Tensor | None,
        watcher: Watcher,
        stop: Stop,
    ) -> Sampling:
        if request.width is None or request.height is None:
            raise ValueError("the size of the video must be settled before generation")

        def on_step(done: int) -> None:
            stop.check()
            watcher.generating(done / request.num_inference_steps)

        return Sampling(
            width=request.width,
            height=request.height,
            num_frames=request.num_frames,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            guidance_scale_2=None if spec.boundary_ratio is None else request.guidance_scale_2,
            prompt_embeds=embeds,
            negative_prompt_embeds=negative,
            # Drawn on the CPU, so that a seed gives the same noise on every GPU.
            generator=torch.Generator("cpu").manual_seed(request.seed),
            strength=request.strength,
            on_step=on_step,
        )

    def _load(self, spec: ModelSpec, stop: Stop) -> loading.Components:
        found = self._components.get(spec.key)
        if found is not None:
            return found
        started = time.perf_counter()
        folder = self._source.folder(spec, stop.event)
        stop.check()
        shared = self._shared_with(spec)
        if shared is None:
            shared = loading.load_shared(folder, device=self._device, dtype=self._dtype)
        components = loading.load(folder, spec, shared, device=self._device, dtype=self._dtype)
        self._components[spec.key] = components
        logger.info("loaded %s on %s in %.1f s", spec.version, self.gpu, time.perf_counter() - started)
        return components

    def _shared_with(self, spec: ModelSpec) -> loading.SharedParts | None:
        """Text encoder and VAE of a model of the same kind that is loaded already: A14B's two models share them."""
        for other in self._catalogue:
            if other.name == spec.name and other.key in self._components:
                return self._components[other.key].shared
        return None

    def _count_tokens(self, components: loading.Components, prompt: str) -> int:
        return len(components.shared.tokenizer(prompt).input_ids)

    def _embed(self, components: loading.Components, spec: ModelSpec, text: str) -> torch.Tensor:
        """Text embeddings [1, 512, text_dim], remembered: the negative prompt is the same in almost every job."""
        key = (spec.name, text)
        if key in self._embeds:
            self._embeds.move_to_end(key)
            return self._embeds[key]
        encoder = MODES["text_to_video"].pipeline(**components.for_pipeline(None))
        embeds: torch.Tensor = encoder.encode_prompt(
            text,
            do_classifier_free_guidance=False,
            max_sequence_length=MAX_TOKENS,
            device=self._device,
            dtype=self._dtype,
        )[0]
        self._embeds[key] = embeds
        while len(self._embeds) > _CACHED_PROMPTS:
            self._embeds.popitem(last=False)
        return embeds

    def _decode(self, components: loading.Components, latents: torch.Tensor, stop: Stop) -> Iterator[np.ndarray]:
        with self._lock, closing(decode.frames(components.shared.vae, latents)) as frames:
            for frame in frames:
                stop.check()
                yield frame


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def require_gpu() -> None:
    """Raise ModelUnavailable where no CUDA device is at hand: the platform has no fallback."""
    if not torch.cuda.is_available():
        raise ModelUnavailable("no CUDA GPU is visible to this worker: choose a GPU type for the endpoint")


@dataclass(frozen=True, slots=True)
class _Schedule:
    scheduler: object
    flow_shift: float
    warnings: tuple[str, ...] = ()


def _schedule(request: VideoRequest, spec: ModelSpec, components: loading.Components) -> _Schedule:
    """A scheduler of this run's own, so that no run inherits another's state."""
    if request.quality_preset == "turbo":
        ignored = request.flow_shift is not None and request.flow_shift != distilled.FLOW_SHIFT
        note = f"{request.at('flow_shift')}: ignored, the steps of turbo are fixed at shift {distilled.FLOW_SHIFT:g}"
        return _Schedule(distilled.scheduler(), distilled.FLOW_SHIFT, (note,) if ignored else ())
    shift = spec.flow_shift if request.flow_shift is None else request.flow_shift
    scheduler = UniPCMultistepScheduler.from_config(components.scheduler_config, flow_shift=shift)
    return _Schedule(scheduler, shift)


def _token_warning(request: VideoRequest, tokens: int) -> tuple[str, ...]:
    if tokens <= MAX_TOKENS:
        return ()
    return (f"{request.at('prompt')}: {tokens} tokens; the text encoder reads the first {MAX_TOKENS}",)


def _quiet_libraries() -> None:
    """Progress bars and notices of the libraries would run between the lines of our log."""
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
