"""How long a video will take on a GPU, and what it will cost, before anything is loaded: an estimate, with its range.

The work is counted: the floating-point operations of the published architectures, which a test holds to torch's own
count of the real classes. The rates are assumed: a share of the GPU's published peak, whose two ends are what public
measurements of these models reached. No torch here, and no device is looked at.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from worker.request.catalogue import CATALOGUE, ModelSpec, find
from worker.request.plan import Gpu, MemoryPlan, ModelSize, Shape, size_of
from worker.request.plan import peak as sizes
from worker.request.segments import clips
from worker.request.values import VideoRequest

TEXT_TOKENS = 512
# The share of the bf16 peak that denoising reaches. Published for A14B at 832x480x81 with guidance, 3,356 TFLOP a step:
# Diffusers on an H100 9.77 s a step, 35%; LightX2V on an H100 5.18 s a step, 65%; SGLang on an H200 264 s for 50 steps,
# 64%. Matrix products alone reach 80% (790 TFLOP/s on an H200). Other GPUs are taken to reach the same share.
DENOISE_SHARE = (0.35, 0.65)
# The VAE computes in fp32, which cuDNN rounds to TF32: half of the bf16 peak. The share of that which 3D convolutions
# reach is a guess from published runs of 4 steps, which leave a few seconds for the VAE.
VAE_SHARE = (0.10, 0.40)
# This worker on H200s (benchmarks/results/h200-*, torch 2.11): 562 to 651 TFLOP/s of denoising, on cards of 722 to 796
# TFLOP/s in bf16; 104 to 140 of decoding in fp32. An H100 of the same socket (SXM) has the same chip; PCIe
# boards have less power, and are taken as all others are.
HOPPER_DENOISE_SHARE = (0.55, 0.70)
HOPPER_VAE_SHARE = (0.20, 0.32)
# Bytes a second. Pinned host memory to the GPU; pageable memory, layer by layer; a network volume.
PINNED_RATE = (20e9, 50e9)
PAGEABLE_RATE = (1e9, 3e9)
VOLUME_RATE = (200e6, 400e6)
# x264 "medium" took 1.5 s for 81 frames of 832x480 on two cores; it runs beside the decode.
ENCODE_S_PER_PIXEL = 1.5 / (832 * 480 * 81)
TILED_DECODE = 2.0
# The share of the work that a step cache leaves at best; published for TeaCache on an H200: 107 of 191 s. On these
# weights it is not calibrated, and may leave everything.
STEP_CACHE_LEAVES = 0.55
# Operations of the VAE for each pixel of a frame, counted by torch (Diffusers 0.42.1): decoding the first
# latent frame, each further one, encoding the first frame, each further four.
VAE_FLOP: Mapping[str, tuple[float, float, float, float]] = {
    "a14b": (10.99e6, 34.02e6, 6.90e6, 20.25e6),
    "5b": (22.82e6, 73.62e6, 4.67e6, 0.0),  # the 5B model encodes a single image
}
# The last of these by layers, for the blank frames behind a reference picture: after so many chunks of four these
# layers stand still, and `worker.engine.techniques.image_encode` leaves them out.
STANDS_STILL: Mapping[str, tuple[tuple[int, float], ...]] = {
    "a14b": (
        (3, 4.04e6),
        (4, 4.15e6),
        (5, 3.02e6),
        (6, 4.18e6),
        (8, 1.51e6),
        (10, 1.99e6),
        (15, 0.35e6),
        (19, 0.25e6),
        (27, 0.76e6),
    ),
    "5b": (),
}


@dataclass(frozen=True, slots=True)
class Speed:
    """`tflops`: dense bf16 at most; the shares of it, for the VAE of its half, that denoising and the VAE reach."""

    tflops: float
    denoise_share: tuple[float, float] = DENOISE_SHARE
    vae_share: tuple[float, float] = VAE_SHARE


# Dense bf16 TFLOP/s with fp32 accumulation, from NVIDIA's data sheets and architecture papers. The name is matched as
# words, so that a laptop's, a GH200's or a slice's (MIG) name finds nothing.
SPEEDS: tuple[tuple[str, Speed], ...] = (
    (r"B200", Speed(2250.0)),
    (r"H200", Speed(989.0, HOPPER_DENOISE_SHARE, HOPPER_VAE_SHARE)),
    (r"H100 NVL", Speed(835.0)),
    (r"H100 PCIE", Speed(756.0)),
    (r"H100", Speed(989.0, HOPPER_DENOISE_SHARE, HOPPER_VAE_SHARE)),
    (r"A100", Speed(312.0)),
    (r"L40S", Speed(362.0)),
    (r"L40", Speed(181.0)),
    (r"L4", Speed(121.0)),
    (r"RTX PRO 6000", Speed(504.0)),
    (r"RTX 6000 ADA", Speed(364.0)),
    (r"(?:RTX )?A6000", Speed(155.0)),
    (r"A40", Speed(150.0)),
    (r"(?:RTX )?A5000", Speed(111.0)),
    (r"RTX 5090", Speed(209.0)),
    (r"RTX 4090", Speed(165.0)),
    (r"RTX 3090", Speed(71.0)),
)
_NOT_THESE = re.compile(r"\b(?:LAPTOP|MAX Q|MIG|4090 D|5090 D|3090 TI)\b")


@dataclass(frozen=True, slots=True)
class Span:
    """From the least to the most that is to be expected."""

    low: float
    high: float

    def __add__(self, other: Span) -> Span:
        return Span(self.low + other.low, self.high + other.high)

    def times(self, factor: float) -> Span:
        return Span(self.low * factor, self.high * factor)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds. `stages` are those of a result's `timings`, of a worker whose model is loaded. Where it is not, `load`
    is added before them: from a network volume, prepared in the plan's precision (low) or as published (high).
    """

    gpu: str
    forwards: int
    tflop: float
    stages: Mapping[str, Span]
    load: Span

    @property
    def total(self) -> Span:
        return sum(self.stages.values(), Span(0.0, 0.0))


def cost_usd(seconds: Span, gpu_hourly_usd: float) -> Span:
    return seconds.times(gpu_hourly_usd / 3600)


def of_request(request: VideoRequest, spec: ModelSpec, gpu: Gpu, plan: MemoryPlan) -> Estimate | None:
    """The estimate for a request whose size is settled; None for a GPU of unknown speed, and for the demo model.

    That of several segments is their sum, and that of all the models that they are made by.
    """
    parts = [_of_clip(clip, spec, gpu, plan) for clip in clips(request)]
    made = [part for part in parts if part is not None]
    if len(made) < len(parts):
        return None
    stages = {name: sum((part.stages[name] for part in made), Span(0.0, 0.0)) for name in made[0].stages}
    load = made[0].load.times(len(models_of(request, spec)))
    return Estimate(gpu.name, sum(part.forwards for part in made), sum(part.tflop for part in made), stages, load)


def models_of(request: VideoRequest, spec: ModelSpec) -> tuple[ModelSpec, ...]:
    """`spec`, which makes the first clip, and the models of further segments: what begins with words goes on from a
    picture."""
    others = [find(clip.model, clip.mode) for clip in clips(request)[1:]] if is_published(spec) else []
    return tuple({each.version: each for each in (spec, *others) if each is not None}.values())


def _of_clip(request: VideoRequest, spec: ModelSpec, gpu: Gpu, plan: MemoryPlan) -> Estimate | None:
    speed = speed_of(gpu.name)
    if speed is None or not is_published(spec) or request.width is None or request.height is None:
        return None
    size, shape = size_of(spec), Shape(request.width, request.height, request.num_frames)
    passes, work = forwards(request, spec), forward_flop(size, shape)
    expert = sizes.expert_bytes(size, plan.precision)
    text = 2 * 2 * TEXT_TOKENS * size.text_encoder_params  # two prompts
    conditioning = _conditioning_flop(request, spec, shape, plan)
    peak, denoise_share, vae_share = speed.tflops * 1e12, speed.denoise_share, speed.vae_share
    decode = _at(decode_flop(spec, shape), peak / 2, vae_share).times(TILED_DECODE if plan.vae_tiling else 1.0)
    compress_s = ENCODE_S_PER_PIXEL * shape.pixels * shape.num_frames
    denoising = _at(work, peak, denoise_share)
    if request.step_cache != "off" and request.quality_preset != "turbo":
        denoising = Span(denoising.low * STEP_CACHE_LEAVES, denoising.high)
    stages = {
        "text": _at(text, peak, denoise_share) + _moved(plan, sizes.text_encoder_bytes(size, "bf16"), of_text=True),
        "generate": _denoise(passes, denoising, expert, plan)
        + _at(conditioning, peak / 2, vae_share)
        + _moved(plan, size.experts * expert),
        "encode": Span(max(decode.low, compress_s), max(decode.high, compress_s)) + _moved(plan, sizes.vae_bytes(size)),
    }
    return Estimate(gpu.name, passes, passes * work / 1e12, stages, _load(size, plan))


def is_published(spec: ModelSpec) -> bool:
    """Whether the model has the published sizes; the demo model has not."""
    return spec.version in {each.version for each in CATALOGUE}


def speed_of(gpu_name: str) -> Speed | None:
    """The speed of a GPU by the name that torch or the table of plans gives; or None."""
    words = " ".join(re.findall(r"[A-Z0-9]+", gpu_name.upper()))
    if _NOT_THESE.search(words):
        return None
    return next((speed for name, speed in SPEEDS if re.search(rf"\b{name}\b", words)), None)


def forwards(request: VideoRequest, spec: ModelSpec) -> int:
    """Forward passes of the experts: two for each step that is guided; video-to-video leaves out the first steps."""
    steps, scales = request.num_inference_steps, (request.guidance_scale, request.guidance_scale_2)
    high = steps if spec.boundary_ratio is None else high_noise_steps(request, spec, spec.boundary_ratio)
    low = steps - high
    if request.quality_preset == "turbo":
        # Two distilled steps on the low-noise expert, and two or the guided ones of `hybrid` on the other.
        high, low = (high, 2) if request.turbo_variant == "hybrid" else (steps - 2, 2)
    if request.mode == "video_to_video":
        left_out = high + low - max(int((high + low) * request.strength), 1)
        high, low = max(high - left_out, 0), low - max(left_out - high, 0)
    guided = math.ceil(request.guidance_until * (high + low))
    of_experts = (min(high, guided), max(guided - high, 0))
    return high + low + sum(count for count, scale in zip(of_experts, scales, strict=True) if scale > 1)


def high_noise_steps(request: VideoRequest, spec: ModelSpec, boundary_ratio: float) -> int:
    """How many steps of UniPC's flow schedule are at or above the boundary: 26 of 40 for T2V at shift 12."""
    shift, steps = spec.flow_shift if request.flow_shift is None else request.flow_shift, request.num_inference_steps
    even = (1 - 0.999 * step / steps for step in range(steps))
    return sum(int(1000 * shift * sigma / (1 + (shift - 1) * sigma)) >= 1000 * boundary_ratio for sigma in even)


def forward_flop(size: ModelSize, shape: Shape) -> float:
    """Operations of one forward pass of an expert, a multiplication and an addition counted as two.

    A block: four projections of self-attention, its scores and their product with the values; the same over the text;
    two layers of feed-forward. A timestep per token adds its embedding and projection.
    """
    n, d, f, t = size.tokens(shape), size.dim, size.ffn_dim, TEXT_TOKENS
    self_attention = 8 * n * d * d + 4 * n * n * d
    cross_attention = 4 * n * d * d + 4 * t * d * d + 4 * n * t * d
    blocks = size.layers * (self_attention + cross_attention + 4 * n * d * f)
    return float(blocks + (14 * n * d * d if size.timestep_per_token else 0))


def decode_flop(spec: ModelSpec, shape: Shape) -> float:
    first, further, _, _ = VAE_FLOP[spec.name]
    return shape.pixels * (first + further * (shape.latent_frames - 1))


def encode_flop(spec: ModelSpec, shape: Shape) -> float:
    """Of a whole conditioning video (A14B), or the image (5B)."""
    _, _, first, further = VAE_FLOP[spec.name]
    return shape.pixels * (first + further * (shape.latent_frames - 1))


def image_encode_flop(spec: ModelSpec, shape: Shape, *, last_image: bool = False) -> float:
    """Of a picture, blank frames and perhaps a last picture, as they are encoded (`ENABLE_IMAGE_ENCODE_REUSE`)."""
    _, _, first, further = VAE_FLOP[spec.name]
    blank_chunks = shape.latent_frames - 1 - last_image
    blank = sum(min(blank_chunks, chunks) * flop for chunks, flop in STANDS_STILL[spec.name])
    return shape.pixels * (first + blank + further * last_image)


def _conditioning_flop(request: VideoRequest, spec: ModelSpec, shape: Shape, plan: MemoryPlan) -> float:
    if request.mode == "text_to_video":
        return 0.0
    if request.mode == "video_to_video" or plan.vae_tiling:
        return encode_flop(spec, shape)
    return image_encode_flop(spec, shape, last_image=request.mode == "first_last_frame")


def _at(flop: float, peak: float, share: tuple[float, float]) -> Span:
    return Span(flop / (peak * share[1]), flop / (peak * share[0]))


def _over(size_bytes: float, rate: tuple[float, float]) -> Span:
    return Span(size_bytes / rate[1], size_bytes / rate[0])


def _moved(plan: MemoryPlan, size_bytes: float, *, of_text: bool = False) -> Span:
    """Weights that wait in host memory are moved to the GPU once a video, where the plan does not stream them."""
    waits = plan.residency == "swap" or (of_text and plan.text_encoder == "offloaded")
    return _over(size_bytes, PINNED_RATE) if waits else Span(0.0, 0.0)


def _denoise(passes: int, forward: Span, expert_bytes: float, plan: MemoryPlan) -> Span:
    """Group offload streams an expert beside each pass, sequential offload before it."""
    if plan.residency == "group_offload":
        streamed = _over(expert_bytes, PINNED_RATE)
        forward = Span(max(forward.low, streamed.low), max(forward.high, streamed.high))
    elif plan.residency == "sequential":
        forward = forward + _over(expert_bytes, PAGEABLE_RATE)
    return forward.times(passes)


def _load(size: ModelSize, plan: MemoryPlan) -> Span:
    shared = sizes.text_encoder_bytes(size, "bf16") + sizes.vae_bytes(size)
    least = shared + size.experts * sizes.expert_bytes(size, "fp8" if plan.precision == "fp8" else "bf16")
    most = shared + size.experts * sizes.expert_bytes(size, "fp32")
    return Span(least / VOLUME_RATE[1], most / VOLUME_RATE[0])
