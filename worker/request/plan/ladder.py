"""The ladder: which arrangements of the weights the GPU, the settings and the host's memory allow, fastest first.

A worker quantises once: the precision follows from the GPU, the model and the settings, never from the request, and the
rungs differ only in where the weights are.

1. resident: both experts, VAE and text encoder on the GPU, where that leaves 8% free; then the same with the text
   encoder there only while it reads (a quarter of a second a prompt).
2. swap: text encoder, VAE, first expert, second expert, VAE one after another from pinned memory. 28.6 GB are moved in
   1 to 3 seconds, once a video, against minutes of denoising: bf16 with a swap is chosen before quantised and resident.
3. swap with a tiled VAE, which takes twice the time of decoding and changes pixels.
4. group_offload: the blocks stream in while others compute; then sequential: layer by layer, the last resort.

fp8 (Ada, Hopper, Blackwell) or int8 (Ampere) is chosen where bf16 cannot hold a whole expert for 832x480x81, or the
host cannot hold the bf16 weights that are swapped, or the arithmetic is to be quantised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from worker.base.errors import SettingsError
from worker.request.plan.gpus import Gpu
from worker.request.plan.peak import Precision, Residency, TextEncoderPlace, host_bytes, peak_bytes
from worker.request.plan.sizes import ModelSize, Shape

if TYPE_CHECKING:
    from worker.base.settings import Settings

STANDARD = Shape(832, 480, 81)
_WITH_TEXT_ENCODER = 0.92
_WHOLE: tuple[Residency, ...] = ("resident", "swap")


@dataclass(frozen=True, slots=True)
class Rung:
    """One arrangement of the weights."""

    precision: Precision
    residency: Residency
    text_encoder: TextEncoderPlace
    vae_tiling: bool

    def __str__(self) -> str:
        parts: list[str] = [self.precision, self.residency]
        if self.residency == "resident" and self.text_encoder == "offloaded":
            parts.append("text encoder offloaded")
        return ", ".join([*parts, "tiled VAE"] if self.vae_tiling else parts)

    def peak_bytes(self, size: ModelSize, shape: Shape) -> int:
        """The most that torch allocates at once; see `peak.peak_bytes`."""
        return peak_bytes(size, shape, self.precision, self.residency, self.text_encoder, tiled=self.vae_tiling)

    def share_of(self, rungs: Sequence[Rung]) -> float:
        """The share of the GPU's budget that this arrangement may fill, where `rungs` are allowed.

        A text encoder that could be offloaded stays only where it leaves room: it costs a quarter of a second a prompt,
        and the memory of weights that are loaded beside a running video is in pieces.
        """
        twin = replace(self, text_encoder="offloaded")
        return _WITH_TEXT_ENCODER if twin != self and twin in rungs else 1.0

    def host_bytes(self, size: ModelSize, shape: Shape) -> int:
        """Weights that wait in host memory."""
        return host_bytes(size, shape, self.precision, self.residency, self.text_encoder)


def climb(
    gpu: Gpu | None, size: ModelSize, settings: Settings, host_limit: int | None
) -> tuple[tuple[Rung, ...], tuple[str, ...]]:
    """The ladder, and why it looks as it does.

    Raises SettingsError where the GPU cannot do what the settings ask for.
    """
    if gpu is None:
        tiled = settings.enable_vae_tiling == "always"
        return (Rung("fp32", "resident", "resident", tiled),), ("no GPU: everything in fp32 on the CPU",)
    only_streamed = all(residency not in _WHOLE for residency, _ in _residencies(settings))
    tried: list[str] = []
    rungs: tuple[Rung, ...] = ()
    for precision in _precisions(gpu, settings):
        rungs = _rungs_of(precision, size, settings, host_limit)
        whole = [rung for rung in rungs if rung.residency in _WHOLE]
        if only_streamed or any(rung.peak_bytes(size, STANDARD) <= gpu.budget_bytes for rung in whole):
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
    smaller: Precision = "fp8" if gpu.has_fp8 else "int8"
    return (smaller,) if settings.quantized_compute != "off" else ("bf16", smaller)


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
        "QUANTIZED_COMPUTE": None if settings.quantized_compute == "off" else settings.quantized_compute,
        "QUANTIZATION": None if settings.quantization == "auto" else settings.quantization,
        "ENABLE_VAE_TILING": None if settings.enable_vae_tiling == "true" else settings.enable_vae_tiling,
    }
    return tuple(
        f"{name}={str(value).lower()} overrules the plan" for name, value in set_ones.items() if value is not None
    )
