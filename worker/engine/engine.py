"""The GPU's owner: turns a request into latents, and latents into frames.

Everything here blocks and runs in one thread at a time; a lock holds a second caller off until the first has really
ended. A run that is stopped ends after the step in hand, and the next run is exact. Where memory runs out, the video is
tried once more under the next lower plan; where the latents are no picture, once more without what may be the reason.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from worker.base.errors import OutOfMemory, Unsupported
from worker.base.stop import Stop
from worker.engine import decode
from worker.engine.denoise import Denoised, Denoiser, Given, Watcher, shape_of
from worker.engine.device import Planner
from worker.engine.distributed import ALONE, Crew
from worker.engine.models import components
from worker.engine.models.pool import Loaded, LoadedModels, ModelSource
from worker.engine.modes import MODES
from worker.engine.modes.base import Conditioning
from worker.engine.shared_work import DeviceLost, SharedWork
from worker.engine.techniques import Setup, Techniques
from worker.request import ModelSpec, VideoRequest
from worker.request.plan import MemoryPlan
from worker.weights.loras import DistilledFiles, LoraFile

logger = logging.getLogger(__name__)
__all__ = ["DeviceLost", "Engine", "Rendering"]


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
    """Serves the models of `catalogue`; `source` finds their folders, `planner` fits them on the device."""

    def __init__(
        self, source: ModelSource, catalogue: Sequence[ModelSpec], planner: Planner, crew: Crew = ALONE
    ) -> None:
        self._catalogue = tuple(catalogue)
        self._planner = planner
        self._device = planner.device
        dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        self._lock = threading.Lock()
        self.techniques = Techniques(Setup(planner.settings, self._device, dtype, crew.size))
        self.models = LoadedModels(
            source,
            device=self._device,
            dtype=dtype,
            gpu=planner.gpu,
            host_bytes=planner.host_bytes,
            on_expert=self.techniques.prepare,
            # A process of a crew that waits for an expert would keep the others in a collective.
            overlap=crew.size == 1,
            arithmetic="cast" if planner.settings.quantized_compute == "off" else "quantized",
        )
        denoiser = Denoiser(self._device, dtype, self.techniques, crew)
        self._work = SharedWork(self.models, denoiser, self.techniques, crew)
        components.quiet_libraries()

    @property
    def gpu(self) -> str:
        """The name of the device, or devices, as results report it."""
        name = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu"
        return name if self._work.crew_size == 1 else f"{self._work.crew_size} x {name}"

    def spec_for(self, request: VideoRequest) -> ModelSpec:
        """The model that serves a request. Raises Unsupported where none does."""
        model, mode = request.model, request.mode
        turbo = request.quality_preset == "turbo"
        takes_fused = turbo and request.turbo_variant == "full"
        size = (request.height, request.width, request.num_frames)
        serving = [
            spec
            for spec in self._catalogue
            if spec.name == model
            and mode in spec.modes
            and (spec.extent is None or (spec.extent.holds(*size) and (spec.turbo or not turbo)))
        ]
        # Fused weights before plain ones, and those made for a size before those for any.
        spec = max(
            (spec for spec in serving if takes_fused or not spec.fused),
            key=lambda each: (each.extent is not None, each.fused),
            default=None,
        )
        if spec is None or mode not in MODES:
            names = {name for spec in self._catalogue if spec.name == model for name in spec.modes} & set(MODES)
            served = ", ".join(sorted(names))
            raise Unsupported(f"model {model} does not serve {mode} on this worker; it serves {served}")
        if turbo and not spec.turbo:
            full_alone = not takes_fused and any(other.fused for other in serving)
            raise Unsupported(
                f"turbo is not served for {mode} with model {model} on this worker; use draft"
                if not full_alone
                else "the hybrid variant of turbo is not served by this worker; use full",
                path=request.at("turbo_variant" if full_alone else "quality_preset"),
            )
        return spec

    def plan_for(self, request: VideoRequest) -> MemoryPlan:
        """How the request would be fitted on the device; its size must be settled.

        Raises InvalidRequest, before any work, where it does not fit at all; the message says what would.
        """
        spec = self.spec_for(request)
        distilled = request.quality_preset == "turbo" and bool(spec.distilled)
        return self._planner.plan(spec, shape_of(request, distilled=distilled), path=request.at("width"))

    def preload(self, keys: Sequence[str], stop: Stop) -> None:
        """Load the models named by key (`i2v`, `t2v`, `5b`) before the first job, as for a video of 832x480x81.

        Their files are found and their headers checked when this returns; the weights of the last of them still arrive.
        """
        with self._lock:
            wanted = [(spec, self._planner.standard(spec)) for spec in self._catalogue if spec.key in keys]
            self._work.preload(wanted, stop)

    @torch.no_grad()
    def follow(self, order: object) -> None:
        """Carry out an order of the crew's lead, as one of its followers."""
        with self._lock:
            self._work.follow(order)

    @torch.no_grad()
    def generate(
        self,
        request: VideoRequest,
        prompt: str,
        conditioning: Conditioning,
        *,
        loras: Sequence[LoraFile] = (),
        distilled: DistilledFiles | None = None,
        watcher: Watcher,
        stop: Stop,
        later: Sequence[str] = (),
    ) -> Rendering:
        """Make the latents of one video.

        `request` has its size settled; `prompt` is the text as it goes to the text encoder; `loras` are the files of
        the request's LoRAs in their order, `distilled` those of turbo, where the model has LoRAs for it; `later` are
        texts that the same model will be asked for next: read now, the text encoder need not come again. Raises the
        reason of `stop` within one step of its being raised, ModelUnavailable, Unsupported, OutOfMemory, and
        FloatingPointError where the latents are no picture.
        """
        spec, plan = self.spec_for(request), self.plan_for(request)
        given = Given(request, spec, prompt, conditioning, loras, distilled, watcher, stop, tuple(later))
        with self._lock:
            try:
                return self._with_less_memory(given, plan)
            except FloatingPointError:
                notes = self._work.fall_back()
                if not notes:
                    raise
            for note in notes:
                logger.warning("%s", note)
            try:
                rendering = self._with_less_memory(given, plan)
            except FloatingPointError:
                self.techniques.take_back()
                raise
            return replace(rendering, warnings=(*rendering.warnings, *notes))

    def _with_less_memory(self, given: Given, plan: MemoryPlan) -> Rendering:
        """Under `plan`, and once more under the next lower one where memory runs out."""
        rendering = self._try(given, plan)
        if rendering is not None:
            return rendering
        # Here, outside of any except block, the traceback no longer holds the tensors of the first try.
        lower = self._planner.lower(plan, given.spec, given.shape)
        self.models.drop(given.spec.key)
        _empty_cache()
        if lower is not None:
            logger.warning("out of memory: trying again as %s", lower.rung)
            rendering = self._try(given, lower)
        if rendering is None:
            self.models.drop(given.spec.key)
            _empty_cache()
            raise OutOfMemory(
                "the GPU's memory does not hold this video: send a smaller size or fewer frames",
                path=given.request.at("num_frames"),
            )
        return rendering

    def _try(self, given: Given, plan: MemoryPlan) -> Rendering | None:
        """One try under `plan`; None where memory ran out."""
        try:
            given.stop.check()
            loaded, load_s, denoised = self._work.latents(given, plan)
        except torch.OutOfMemoryError:
            return None
        except torch.AcceleratorError as failure:
            raise DeviceLost("the device failed while generating") from failure
        return Rendering(
            frames=lambda: self._decode(loaded, plan, denoised, given.stop),
            width=given.shape.width,
            height=given.shape.height,
            num_frames=given.request.num_frames,
            seconds={"load": load_s, **denoised.seconds},
            warnings=denoised.warnings,
            parameters={**denoised.parameters, **self.models.cold_start(loaded)},
        )

    def _decode(self, loaded: Loaded, plan: MemoryPlan, denoised: Denoised, stop: Stop) -> Iterator[np.ndarray]:
        """The frames. Where memory runs out, decode anew in tiles and go on behind the frames that are out."""
        vae = loaded.components.shared.vae
        given = 0
        with self._lock:
            loaded.residency.bring(vae)
            for tiled in (True,) if plan.vae_tiling else (False, True):
                try:
                    stream = decode.frames(vae, denoised.latents, tiled=tiled, half=denoised.half_decode)
                    with closing(stream) as frames:
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


def _empty_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
