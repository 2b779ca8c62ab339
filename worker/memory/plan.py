"""Which arrangement of the weights serves a video on a GPU: the fastest that fits, or a refusal before any work.

The arrangements, from fastest to smallest, are the rungs of a ladder. A worker quantises once: the precision follows
from the GPU, the model and the settings, never from the request, and the rungs differ only in what lies where.

1. resident: both experts, VAE and text encoder on the GPU; then the same with the text encoder there only while it
   reads (half a second a video).
2. swap: text encoder, VAE, first expert, second expert, VAE one after another from pinned memory. 28.6 GB arrive in
   1 to 3 seconds, once a video, against minutes of denoising: bf16 with a swap comes before quantised and resident.
3. the same with a tiled VAE, which takes twice the time of decoding and changes pixels.
4. group_offload: the blocks stream in while others compute; then sequential: layer by layer, the last resort.

fp8 (Ada, Hopper, Blackwell) or int8 (Ampere) is chosen where bf16 cannot hold a whole expert for 832x480x81.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from worker.errors import InvalidRequest, SettingsError, Unsupported
from worker.memory.estimate import Precision, Residency, TextEncoderPlace, host_bytes, peak_bytes
from worker.memory.gpus import Gpu
from worker.memory.sizes import ModelSize, Shape, size_of
from worker.models import ModelSpec

if TYPE_CHECKING:
    from worker.settings import Settings

STANDARD = Shape(832, 480, 81)
# Landscape; a portrait request is offered the same sizes upright. All are multiples of 16, and of 32 for the 5B model.
_SIZES_16 = ((1280, 720), (832, 480), (640, 352), (448, 256), (256, 256))
_SIZES_32 = ((1280, 704), *_SIZES_16[1:])
_FRAMES = (161, 121, 81, 49, 33, 17, 5)
_FRAME_STRIDE = 4
_MIN_FRAMES = 5
# After out of memory the estimate is known to be wrong here: a rung that saves less than this is not worth the one retry.
_WORTH_A_RETRY = 0.95
_GB = 1e9


@dataclass(frozen=True, slots=True)
class Rung:
    """One arrangement of the weights."""

    precision: Precision
    residency: Residency
    text_encoder: TextEncoderPlace
    vae_tiling: bool

    def __str__(self) -> str:
        parts = [self.precision, self.residency]
        if self.residency == "resident" and self.text_encoder == "offloaded":
            parts.append("text encoder offloaded")
        return ", ".join([*parts, "tiled VAE"] if self.vae_tiling else parts)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What the engine carries out for one video.

    precision: of the experts' linear weights in the blocks; all else is bf16, the VAE fp32. residency: where the weights
    are (see the module). vae_tiling: for encoding and decoding alike. estimated_peak_bytes: the most that torch
    allocates at once, CUDA context aside (on the CPU: of main memory). host_bytes: weights that wait in host memory.
    reasons: one line for each decision, for the log.
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


def plan(
    gpu: Gpu | None,
    spec: ModelSpec,
    settings: Settings,
    shape: Shape,
    *,
    size: ModelSize | None = None,
    host_limit_bytes: int | None = None,
    path: str | None = None,
) -> MemoryPlan:
    """The fastest arrangement that fits `shape`, with the whole GPU at its disposal.

    Without a GPU everything is resident in fp32, and nothing is refused. `size` stands for the catalogue's where the
    weights are others; `host_limit_bytes` is the host memory that weights may take, None for no limit.

    Raises InvalidRequest (with `path`) where the shape fits under no arrangement, naming sizes that do; Unsupported where
    no size fits; SettingsError where QUANTIZATION asks for what the GPU cannot do.
    """
    size = size if size is not None else size_of(spec)
    rungs, reasons = _rungs(gpu, size, settings, host_limit_bytes)
    for rung in rungs:
        peak = _peak(size, shape, rung)
        if gpu is None or peak <= gpu.budget_bytes:
            return _plan(rung, gpu, size, shape, (*reasons, f"{rung}: {peak / _GB:.1f} GB at its peak"))
        reasons = (*reasons, f"{rung}: needs {peak / _GB:.1f} of {gpu.budget_bytes / _GB:.1f} GB")
    offers = _offers(gpu, spec, settings, shape, rungs, size)
    if not offers:
        raise Unsupported(
            f"model {spec.name} does not fit into the memory of this worker's GPU at any size; "
            "it needs a larger GPU, or other offload and quantization settings"
        )
    raise InvalidRequest(
        f"{shape} does not fit into the memory of this worker's GPU; what fits: {', or '.join(map(str, offers))}",
        path=path,
    )


def lower(
    current: MemoryPlan,
    gpu: Gpu | None,
    spec: ModelSpec,
    settings: Settings,
    shape: Shape,
    *,
    size: ModelSize | None = None,
    host_limit_bytes: int | None = None,
) -> MemoryPlan | None:
    """The next plan below `current` that needs clearly less, for the one retry after out of memory; None at the end."""
    size = size if size is not None else size_of(spec)
    rungs, _ = _rungs(gpu, size, settings, host_limit_bytes)
    below = rungs[rungs.index(current.rung) + 1 :] if current.rung in rungs else ()
    for rung in below:
        if _peak(size, shape, rung) <= current.estimated_peak_bytes * _WORTH_A_RETRY:
            return _plan(rung, gpu, size, shape, (f"out of memory as {current.rung}: {rung} instead",))
    return None


def ladder(
    gpu: Gpu | None,
    spec: ModelSpec,
    settings: Settings,
    *,
    size: ModelSize | None = None,
    host_limit_bytes: int | None = None,
) -> tuple[Rung, ...]:
    """The arrangements that the settings and the host's memory allow, from fastest to smallest.

    Call it at start: raises SettingsError where the GPU cannot do what the settings ask for.
    """
    return _rungs(gpu, size if size is not None else size_of(spec), settings, host_limit_bytes)[0]


def largest(
    gpu: Gpu | None,
    spec: ModelSpec,
    settings: Settings,
    *,
    size: ModelSize | None = None,
    host_limit_bytes: int | None = None,
) -> Shape | None:
    """The standard size and length of the most pixels in all that fits, within MAX_PIXELS and MAX_FRAMES; or None."""
    size = size if size is not None else size_of(spec)
    rungs, _ = _rungs(gpu, size, settings, host_limit_bytes)
    return _largest(gpu, spec, settings, rungs, size)


def _rungs(
    gpu: Gpu | None, size: ModelSize, settings: Settings, host_limit: int | None
) -> tuple[tuple[Rung, ...], tuple[str, ...]]:
    """The ladder, and why it looks as it does."""
    if gpu is None:
        tiled = settings.enable_vae_tiling == "always"
        return (Rung("fp32", "resident", "resident", tiled),), ("no GPU: everything in fp32 on the CPU",)
    tried: list[str] = []
    rungs: tuple[Rung, ...] = ()
    for precision in _precisions(gpu, settings):
        rungs = _rungs_of(precision, size, settings, host_limit)
        whole = [rung for rung in rungs if rung.residency in ("resident", "swap")]
        if any(_peak(size, STANDARD, rung) <= gpu.budget_bytes for rung in whole):
            break
        tried.append(f"{precision} does not hold a whole expert for {STANDARD} on {gpu.name}")
    return rungs, (*tried, *_overrules(settings))


def _precisions(gpu: Gpu, settings: Settings) -> tuple[Precision, ...]:
    """What to try, best quality first. Raises SettingsError for what the GPU cannot do."""
    if not gpu.has_bf16:
        raise SettingsError([f"{gpu.name} cannot compute in bf16: choose a GPU from the Ampere generation on"])
    match settings.quantization:
        case "none":
            return ("bf16",)
        case "int8":
            return ("int8",)
        case "fp8":
            if not gpu.has_fp8:
                raise SettingsError([f"QUANTIZATION: {gpu.name} has no fp8: write int8, none or auto"])
            return ("fp8",)
    return ("bf16", "fp8" if gpu.has_fp8 else "int8")


def _rungs_of(precision: Precision, size: ModelSize, settings: Settings, host_limit: int | None) -> tuple[Rung, ...]:
    allowed: list[tuple[Residency, TextEncoderPlace]] = [
        (residency, place)
        for residency, place in _residencies(settings)
        if host_limit is None or host_bytes(size, STANDARD, precision, residency, place) <= host_limit
    ]
    ways = {"true": (False, True), "always": (True,), "false": (False,)}[settings.enable_vae_tiling]
    resident = [each for each in allowed if each[0] == "resident"]
    others = [each for each in allowed if each[0] != "resident"]
    rungs = [Rung(precision, *each, ways[0]) for each in resident]
    # A swap costs seconds, tiling costs pixels: tiles beside resident weights only where there is no swap.
    if len(ways) == 2 and not others:
        rungs += [Rung(precision, *each, True) for each in resident]
    return (*rungs, *(Rung(precision, *each, tiled) for each in others for tiled in ways))


def _residencies(settings: Settings) -> tuple[tuple[Residency, TextEncoderPlace], ...]:
    """What the offload settings allow; each overrules only where it is set explicitly."""
    if settings.enable_sequential_cpu_offload:
        return (("sequential", "offloaded"),)
    if settings.enable_cpu_offload is not None:
        return (("swap", "offloaded"),) if settings.enable_cpu_offload else (("resident", "resident"),)
    every: tuple[tuple[Residency, TextEncoderPlace], ...] = (
        ("resident", "resident"),
        ("resident", "offloaded"),
        ("swap", "offloaded"),
        ("group_offload", "offloaded"),
        ("sequential", "offloaded"),
    )
    return every if settings.enable_sequential_cpu_offload is None else every[:-1]


def _overrules(settings: Settings) -> tuple[str, ...]:
    set_ones = {
        "ENABLE_CPU_OFFLOAD": settings.enable_cpu_offload,
        "ENABLE_SEQUENTIAL_CPU_OFFLOAD": settings.enable_sequential_cpu_offload,
        "QUANTIZATION": None if settings.quantization == "auto" else settings.quantization,
        "ENABLE_VAE_TILING": None if settings.enable_vae_tiling == "true" else settings.enable_vae_tiling,
    }
    return tuple(
        f"{name}={str(value).lower()} overrules the plan" for name, value in set_ones.items() if value is not None
    )


def _peak(size: ModelSize, shape: Shape, rung: Rung) -> int:
    return peak_bytes(size, shape, rung.precision, rung.residency, rung.text_encoder, tiled=rung.vae_tiling)


def _plan(rung: Rung, gpu: Gpu | None, size: ModelSize, shape: Shape, reasons: tuple[str, ...]) -> MemoryPlan:
    peak = _peak(size, shape, rung)
    host = peak if gpu is None else host_bytes(size, shape, rung.precision, rung.residency, rung.text_encoder)
    return MemoryPlan(
        rung.precision, rung.residency, rung.text_encoder, rung.vae_tiling, peak, host, reasons
    )


def _fits(gpu: Gpu | None, size: ModelSize, shape: Shape, rungs: tuple[Rung, ...]) -> bool:
    return gpu is None or any(_peak(size, shape, rung) <= gpu.budget_bytes for rung in rungs)
