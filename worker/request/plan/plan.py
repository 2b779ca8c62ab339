"""Which arrangement of the weights serves a video on a GPU: the fastest that fits, or a refusal before any work.

The arrangements and their order are in `ladder`, what each takes in `peak`. All of it is arithmetic: nothing here
looks at a device.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from worker.base.errors import InvalidRequest, Unsupported
from worker.request.catalogue import ModelSpec
from worker.request.plan.gpus import Gpu
from worker.request.plan.ladder import STANDARD, Rung, climb
from worker.request.plan.peak import Precision, Residency, TextEncoderPlace
from worker.request.plan.sizes import ModelSize, Shape, size_of

if TYPE_CHECKING:
    from worker.base.settings import Settings

# Landscape; a portrait request is offered the same sizes upright. All are multiples of 16, and of 32 for the 5B model.
_SIZES_16 = ((1280, 720), (832, 480), (640, 352), (448, 256), (256, 256))
_SIZES_32 = ((1280, 704), *_SIZES_16[1:])
_FRAMES = (161, 121, 81, 49, 33, 17, 5)
_MIN_FRAMES = 5
# After out of memory the estimate is known to be wrong: a rung that saves less than this is not worth the one retry.
_WORTH_A_RETRY = 0.95
_GB = 1e9


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What the engine carries out for one video.

    `precision` is that of the experts' linear weights in the blocks; all else is bf16, the VAE fp32. `residency`: where
    the weights are (see `ladder`). `vae_tiling`: for encoding and decoding alike. `estimated_peak_bytes`: the most that
    torch allocates at once, without the CUDA context (on the CPU: of main memory). `host_bytes`: weights that wait in
    host memory. `reasons`: one line for each decision, for the log.
    """

    precision: Precision
    residency: Residency
    text_encoder: TextEncoderPlace
    vae_tiling: bool
    estimated_peak_bytes: int
    host_bytes: int
    reasons: tuple[str, ...]

    @property
    def rung(self) -> Rung:
        return Rung(self.precision, self.residency, self.text_encoder, self.vae_tiling)


@dataclass(frozen=True, slots=True)
class Planner:
    """Plans for one GPU, all of whose memory is free, under the worker's settings.

    `gpu` is None on a CPU: there everything is resident in fp32, and nothing is refused. `host_limit_bytes` is the host
    memory that weights may take, None for no limit. Every method raises SettingsError where the settings ask for what
    the GPU cannot do.
    """

    gpu: Gpu | None
    settings: Settings
    host_limit_bytes: int | None = None

    def plan(
        self, spec: ModelSpec, shape: Shape, *, size: ModelSize | None = None, path: str | None = None
    ) -> MemoryPlan:
        """The fastest arrangement that fits `shape`. `size` replaces the catalogue's where the weights are others.

        Raises InvalidRequest (with `path`) where the shape fits under no arrangement, naming sizes that do; Unsupported
        where no size fits.
        """
        size = size_of(spec) if size is None else size
        rungs, reasons = climb(self.gpu, size, self.settings, self.host_limit_bytes)
        for rung in rungs:
            peak = rung.peak_bytes(size, shape)
            limit = math.inf if self.gpu is None else self.gpu.budget_bytes * rung.share_of(rungs)
            if peak <= limit:
                return self._of(rung, size, shape, (*reasons, f"{rung}: {peak / _GB:.1f} GB at its peak"))
            reasons = (*reasons, f"{rung}: needs {peak / _GB:.1f} of {limit / _GB:.1f} GB")
        raise _refusal(_Fit(self, spec, rungs, size), shape, path)

    def standard(self, spec: ModelSpec) -> MemoryPlan:
        """The plan for 832x480x81, or for the largest that fits where that does not."""
        shape = self.largest(spec)
        if shape is None or shape.pixels * shape.num_frames > STANDARD.pixels * STANDARD.num_frames:
            shape = STANDARD
        return self.plan(spec, shape)

    def lower(self, current: MemoryPlan, spec: ModelSpec, shape: Shape) -> MemoryPlan | None:
        """The next plan below `current` that needs clearly less, for the one retry after out of memory; or None."""
        size, rungs = size_of(spec), self.ladder(spec)
        below = rungs[rungs.index(current.rung) + 1 :] if current.rung in rungs else ()
        for rung in below:
            if rung.peak_bytes(size, shape) <= current.estimated_peak_bytes * _WORTH_A_RETRY:
                return self._of(rung, size, shape, (f"out of memory as {current.rung}: {rung} instead",))
        return None

    def ladder(self, spec: ModelSpec) -> tuple[Rung, ...]:
        """The arrangements that the settings and the host's memory allow, from fastest to smallest."""
        return climb(self.gpu, size_of(spec), self.settings, self.host_limit_bytes)[0]

    def largest(self, spec: ModelSpec) -> Shape | None:
        """The standard size and length of the most pixels that fits, within MAX_PIXELS and MAX_FRAMES; or None."""
        fit = _Fit(self, spec, self.ladder(spec), size_of(spec))
        return next(filter(fit, fit.standards()), None)

    def _of(self, rung: Rung, size: ModelSize, shape: Shape, reasons: tuple[str, ...]) -> MemoryPlan:
        peak = rung.peak_bytes(size, shape)
        return MemoryPlan(
            precision=rung.precision,
            residency=rung.residency,
            text_encoder=rung.text_encoder,
            vae_tiling=rung.vae_tiling,
            estimated_peak_bytes=peak,
            host_bytes=peak if self.gpu is None else rung.host_bytes(size, shape),
            reasons=reasons,
        )


def _refusal(fit: _Fit, shape: Shape, path: str | None) -> InvalidRequest | Unsupported:
    offers = fit.offers(shape)
    if offers:
        fitting = ", or ".join(map(str, offers))
        return InvalidRequest(
            f"{shape} does not fit into the memory of this worker's GPU; what fits: {fitting}", path=path
        )
    if fit(dataclasses.replace(shape, loras=0)) or fit.offers(dataclasses.replace(shape, loras=0)):
        return InvalidRequest(
            f"{shape.loras} LoRAs at once leave no room for a video on this worker's GPU: send fewer", path=path
        )
    return Unsupported(
        f"model {fit.spec.name} does not fit into the memory of this worker's GPU at any size; "
        "it needs a larger GPU, or other offload and quantization settings"
    )


@dataclass(frozen=True, slots=True)
class _Fit:
    """The question whether a shape fits under any rung."""

    planner: Planner
    spec: ModelSpec
    rungs: tuple[Rung, ...]
    size: ModelSize

    def __call__(self, shape: Shape) -> bool:
        gpu = self.planner.gpu
        return gpu is None or any(rung.peak_bytes(self.size, shape) <= gpu.budget_bytes for rung in self.rungs)

    def standards(self) -> list[Shape]:
        """Every standard size and length within MAX_PIXELS and MAX_FRAMES, the most pixels in all first."""
        sizes, settings = _SIZES_16 if self.spec.size_stride == 16 else _SIZES_32, self.planner.settings
        shapes = [Shape(width, height, frames) for width, height in sizes for frames in _FRAMES]
        allowed = [
            each for each in shapes if each.pixels <= settings.max_pixels and each.num_frames <= settings.max_frames
        ]
        return sorted(allowed, key=lambda each: (each.pixels * each.num_frames, each.pixels), reverse=True)

    def offers(self, refused: Shape) -> list[Shape]:
        """What to send instead: this size with fewer frames, and the next smaller standard size; all of them fit."""
        stride = self.spec.frame_stride
        shorter = (
            dataclasses.replace(refused, num_frames=frames)
            for frames in range(refused.num_frames - stride, _MIN_FRAMES - 1, -stride)
        )
        upright = refused.height > refused.width
        smaller = (
            dataclasses.replace(
                refused,
                width=each.height if upright else each.width,
                height=each.width if upright else each.height,
                num_frames=min(each.num_frames, refused.num_frames),
            )
            for each in sorted(self.standards(), key=lambda each: (each.pixels, each.num_frames), reverse=True)
            if each.pixels < refused.pixels
        )
        found = [next(filter(self, shorter), None), next(filter(self, smaller), None)]
        return [shape for shape in found if shape is not None]
