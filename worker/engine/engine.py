"""The GPU's owner: makes the latents of a video, and frames of latents.

    engine = Engine(source, catalogue, planner)
    video = engine.video(request)
    with closing(engine.generate(video, watcher=watcher, stop=Stop()).frames()) as frames: ...

Everything here blocks and runs in one thread at a time; a lock makes a second caller wait until the first has really
ended. A run that is stopped ends after the current step, and the next run is exact. Where memory runs out, the video is
tried once more under the next lower plan; where the latents are no picture, once more without what may be the reason.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from worker.base import folders
from worker.base.errors import OutOfMemory
from worker.base.files import StateFolder
from worker.base.stop import Stop
from worker.engine import decode
from worker.engine.bench import Bench
from worker.engine.denoise import Denoised, Denoiser, Watcher
from worker.engine.device import detect
from worker.engine.distributed import ALONE, Crew
from worker.engine.models.pool import Loaded, LoadedModels, ModelSource
from worker.engine.preview_map import ColourMaps
from worker.engine.shared_work import DeviceLost, SharedWork
from worker.engine.techniques import Setup, Techniques
from worker.engine.video import Video
from worker.request import ModelSpec, VideoRequest, choose, prompt
from worker.request.plan import Planner, Shape

logger = logging.getLogger(__name__)
__all__ = ["DeviceLost", "Engine", "Rendering"]
Frames = Generator[np.ndarray, None, None]


@dataclass(frozen=True, slots=True)
class Rendering:
    """A generated video, still as latents.

    `frames` decodes: uint8 [H, W, 3] one by one. Consume it in the thread that generated, and close it: it holds the
    engine's lock from its first frame until it is exhausted or closed. `load_s`: seconds until the model could be used.
    `cold_start`: seconds of the first load of this process, None for every later video.
    """

    frames: Callable[[], Frames]
    shape: Shape
    denoised: Denoised
    load_s: float
    cold_start: dict[str, float] | None = None

    @property
    def seconds(self) -> dict[str, float]:
        """load, text and generate."""
        return {"load": self.load_s, **self.denoised.seconds}

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.denoised.warnings

    @property
    def parameters(self) -> dict[str, Any]:
        """The values that the engine chose itself."""
        return self.denoised.parameters

    def tail(self) -> np.ndarray:
        """The last latent frame, which a clip that goes on from this one begins with: float32 [1, z_dim, 1, h, w]."""
        last: np.ndarray = self.denoised.latents[:, :, -1:].float().cpu().numpy()
        return last

    def with_warnings(self, notes: tuple[str, ...]) -> Rendering:
        return replace(self, denoised=replace(self.denoised, warnings=(*self.warnings, *notes)))


class Engine:
    """Serves the models of `catalogue`; `source` finds their folders, `planner` fits them on `device`.

    `device` is None for the one that is detected; `crew` are the processes that share each video.
    """

    def __init__(
        self,
        source: ModelSource,
        catalogue: Sequence[ModelSpec],
        planner: Planner,
        device: torch.device | None = None,
        crew: Crew = ALONE,
    ) -> None:
        self.catalogue = tuple(catalogue)
        self.planner = planner
        self._source = source
        self._device = detect() if device is None else device
        self._dtype = dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        self._lock = threading.Lock()
        self.techniques = Techniques(Setup(planner.settings, self._device, dtype, crew.size))
        self.models = LoadedModels(
            source,
            device=self._device,
            dtype=dtype,
            gpu=planner.gpu,
            host_bytes=planner.host_limit_bytes,
            on_expert=self.techniques.prepare,
            # A process of a crew that waits for an expert would keep the others in a collective.
            overlap=crew.size == 1,
            arithmetic="cast" if planner.settings.quantized_compute == "off" else "quantized",
        )
        colour_maps = ColourMaps(StateFolder(folders.state_dir(planner.settings)), {})
        denoiser = Denoiser(self._device, dtype, self.techniques, colour_maps, crew)
        self._work = SharedWork(self.models, denoiser, self.techniques, crew)

    @property
    def gpu(self) -> str:
        """The name of the device, or devices, as results report it."""
        name = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu"
        return name if self._work.crew_size == 1 else f"{self._work.crew_size} x {name}"

    def video(self, request: VideoRequest) -> Video:
        """The model and the memory plan for a request whose size is settled, with nothing else of it yet.

        Raises Unsupported for what no model serves, and InvalidRequest, before any work, for what does not fit on the
        device; the message says what would.
        """
        spec = choose(self.catalogue, request)
        plan = self.planner.plan(spec, Shape.of(request, spec), path=request.at("width"))
        return Video(request, spec, plan, prompt.of_request(request))

    def preload(self, keys: Sequence[str], stop: Stop) -> None:
        """Load the models named by key (`i2v`, `t2v`, `5b`) before the first job, as for a video of 832x480x81.

        Their files are found and their headers checked when this returns; the weights of the last may still be loading.
        """
        with self._lock:
            wanted = [(spec, self.planner.standard(spec)) for spec in self.catalogue if spec.key in keys]
            self._work.preload(wanted, stop)

    @contextmanager
    def bench(self, spec: ModelSpec, stop: Stop) -> Iterator[Bench]:
        """The device for work that is no video: nothing else is loaded on it, and videos wait until it is over.

        Raises DeviceLost where the device fails meanwhile.
        """
        with self._lock:
            self.models.clear()
            _empty_cache()
            try:
                yield Bench(self._source, spec, self._device, self._dtype, stop)
            except torch.OutOfMemoryError:
                raise
            except torch.AcceleratorError as failure:
                raise DeviceLost("the device failed in work that is no video") from failure
            finally:
                _empty_cache()

    @torch.no_grad()
    def follow(self, order: object) -> None:
        """Carry out an order of the crew's leader, as one of its followers."""
        with self._lock:
            self._work.follow(order)

    @torch.no_grad()
    def generate(self, video: Video, *, watcher: Watcher, stop: Stop) -> Rendering:
        """Make the latents of one video.

        Raises the reason of `stop` within one step, ModelUnavailable, Unsupported, OutOfMemory, FloatingPointError
        where the latents are no picture, and DeviceLost.
        """
        with self._lock:
            try:
                return self._with_less_memory(video, watcher, stop)
            except FloatingPointError:
                notes = self._work.fall_back()
                if not notes:
                    raise
            for note in notes:
                logger.warning("%s", note)
            try:
                rendering = self._with_less_memory(video, watcher, stop)
            except FloatingPointError:
                self.techniques.take_back()
                raise
            return rendering.with_warnings(notes)

    def _with_less_memory(self, video: Video, watcher: Watcher, stop: Stop) -> Rendering:
        """Under the video's plan, and once more under the next lower one where memory runs out.

        The model stays loaded: the pool moves its weights to where the lower plan wants them.
        """
        rendering = self._try(video, watcher, stop)
        if rendering is not None:
            return rendering
        # Here, outside of any except block, the traceback no longer holds the tensors of the first try.
        lower = self.planner.lower(video.plan, video.spec, video.shape)
        if lower is not None:
            logger.warning("out of memory: trying again as %s", lower.rung)
            _empty_cache()
            rendering = self._try(replace(video, plan=lower), watcher, stop)
        if rendering is None:
            self.models.drop(video.spec.key)
            _empty_cache()
            raise OutOfMemory(
                "the GPU's memory does not hold this video: send a smaller size or fewer frames",
                path=video.request.at("num_frames"),
            )
        return rendering

    def _try(self, video: Video, watcher: Watcher, stop: Stop) -> Rendering | None:
        """One try under the video's plan; None where memory ran out."""
        try:
            stop.check()
            loaded, load_s, denoised = self._work.latents(video, watcher, stop)
        except torch.OutOfMemoryError:
            return None
        except torch.AcceleratorError as failure:
            raise DeviceLost("the device failed while generating") from failure
        return Rendering(
            frames=lambda: self._decode(video, loaded, denoised, stop),
            shape=video.shape,
            denoised=denoised,
            load_s=load_s,
            cold_start=self.models.cold_start(loaded).get("cold_start"),
        )

    def _decode(self, video: Video, loaded: Loaded, denoised: Denoised, stop: Stop) -> Frames:
        """The frames. Where memory runs out, decode again in tiles and skip the frames that were already yielded."""
        vae = loaded.components.shared.vae
        given = 0
        with self._lock:
            loaded.residency.bring(vae)
            for tiled in (True,) if video.plan.vae_tiling else (False, True):
                try:
                    stream = decode.frames(
                        vae,
                        denoised.latents,
                        tiled=tiled,
                        half=denoised.half_decode,
                        fused=self.planner.settings.enable_fused_kernels,
                    )
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
