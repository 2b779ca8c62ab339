"""What a training takes on the GPU, and which arrangement of it fits: arithmetic, before anything is loaded.

One expert is in memory at a time. Tried from the fastest to the smallest: every activation kept; blocks computed again
for the gradients; their inputs in host memory; the frozen weights stored in 8 bits too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from worker.base.errors import InvalidRequest
from worker.request.plan import Gpu, Shape, duration
from worker.request.plan.duration import Span
from worker.request.plan.peak import encode_bytes, expert_bytes, text_encoder_bytes, vae_bytes
from worker.request.plan.sizes import ModelSize, size_of
from worker.request.training import TrainingRequest

Precision = Literal["fp32", "bf16", "fp8"]
_GB = 1e9
_MARGIN = 1.05
_WORKSPACE_BYTES = 500_000_000
# Of each factor: itself, its gradient and a copy of it in 16 bits; the fp32 original, its gradient and two moments.
_LORA_BYTES = 3 * 2 + 4 * 4
# Counted on the real classes at their real width with `benchmarks.memory_on_meta`, to which a test holds them. What one
# block keeps for its gradients, in bytes: for each token so many of its width and of its feed-forward's, of the width
# more where each token has a timestep of its own, and for each token of the text.
_WIDTH_BYTES, _FEED_FORWARD_BYTES, _TIMESTEP_BYTES, _TEXT_BYTES = 70, 4, 36, 16.2
_TEXT_TOKENS = 512
# What its gradients take beside, while they are computed.
_WORKING_BLOCKS = 0.34
_SHORTER = (81, 49, 33, 17, 5, 1)
_SMALLER = ((832, 480), (640, 352), (448, 256))


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """`precision` is that of the frozen weights in the blocks; `recomputed`: blocks are computed twice, and `on_host`:
    their inputs wait in host memory.

    `estimated_peak_bytes`: the most that torch allocates at once; None on a CPU, where nothing is refused.
    """

    precision: Precision
    recomputed: bool
    on_host: bool = False
    vae_tiling: bool = False
    estimated_peak_bytes: int | None = None

    def __str__(self) -> str:
        again = ", blocks computed again" if self.recomputed else ""
        return f"{self.precision}{again}{', inputs on the host' if self.on_host else ''}"


_LADDER = (
    TrainingPlan("bf16", recomputed=False),
    TrainingPlan("bf16", recomputed=True),
    TrainingPlan("bf16", recomputed=True, on_host=True),
    TrainingPlan("fp8", recomputed=True),
    TrainingPlan("fp8", recomputed=True, on_host=True),
)


def choose(request: TrainingRequest, gpu: Gpu | None, host_limit_bytes: int | None = None) -> TrainingPlan:
    """The fastest arrangement that fits, also into host memory. Raises InvalidRequest for what fits under none, with
    what would."""
    if gpu is None:
        return TrainingPlan("fp32", recomputed=False)
    size, shape = size_of(request.model), Shape(request.width, request.height, request.num_frames)
    fits = partial(_fitting, size, rank=request.rank, gpu=gpu, host_limit_bytes=host_limit_bytes)
    fitting = fits(shape)
    if fitting is not None:
        return fitting
    needed = peak_bytes(size, shape, request.rank, _LADDER[-1])
    offers = [replace(shape, num_frames=frames) for frames in _SHORTER if frames < shape.num_frames] + [
        Shape(width, height, 1) for width, height in _SMALLER if width * height < shape.pixels
    ]
    offer = next((offer for offer in offers if fits(offer) is not None), None)
    what = "no size fits: a larger GPU is needed" if offer is None else f"what fits: {offer}"
    raise InvalidRequest(
        f"training at {shape} needs {needed / _GB:.1f} GB and this worker's GPU has {gpu.budget_bytes / _GB:.1f} GB; "
        f"{what}",
        path="train.num_frames",
    )


def lower(plan: TrainingPlan) -> TrainingPlan | None:
    """The next arrangement below `plan`, for the one retry after out of memory; None where there is none."""
    rungs = [replace(rung, vae_tiling=True) for rung in _LADDER]
    at = [(rung.precision, rung.recomputed, rung.on_host) for rung in rungs]
    place = (plan.precision, plan.recomputed, plan.on_host)
    return rungs[at.index(place) + 1] if place in at[:-1] else None


def _fitting(
    size: ModelSize, shape: Shape, *, rank: int, gpu: Gpu, host_limit_bytes: int | None
) -> TrainingPlan | None:
    full = host_limit_bytes is not None and input_bytes(size, shape) > host_limit_bytes
    for tiled in (False, True):
        encoding = vae_bytes(size) + encode_bytes(size, shape, tiled=tiled)
        for plan in _LADDER:
            peak = max(peak_bytes(size, shape, rank, plan), int(_MARGIN * encoding) + _WORKSPACE_BYTES)
            if peak <= gpu.budget_bytes and not (plan.on_host and full):
                return replace(plan, vae_tiling=tiled, estimated_peak_bytes=peak)
    return None


def peak_bytes(size: ModelSize, shape: Shape, rank: int, plan: TrainingPlan) -> int:
    """The most that torch allocates at once while one expert is trained on one clip, margin included."""
    # A block's weights are cast from 8 bits for its products, and kept as long as its activations.
    cast = 2 * size.linear_params // size.layers if plan.precision == "fp8" else 0
    steps = expert_bytes(size, plan.precision) + lora_parameters(size, rank) * _LORA_BYTES + cast
    steps += activation_bytes(size, shape, recomputed=plan.recomputed)
    if plan.on_host:
        steps -= input_bytes(size, shape)
    text = text_encoder_bytes(size, "bf16")
    return int(_MARGIN * max(steps, text)) + _WORKSPACE_BYTES


def estimated_s(request: TrainingRequest, plan: TrainingPlan, gpu: Gpu | None) -> Span | None:
    """Seconds of all steps; None where the speed of the GPU or the work of the model is not known.

    The gradients take two forward passes at most: none are computed for the frozen weights.
    """
    speed = None if gpu is None else duration.speed_of(gpu.name)
    if speed is None or not duration.is_published(request.model):
        return None
    shape = Shape(request.width, request.height, request.num_frames)
    step = duration.forward_flop(size_of(request.model), shape) * (4 if plan.recomputed else 3)
    slow, fast = (
        sum(each.steps for each in request.experts) * step / (speed.tflops * 1e12) / share
        for share in duration.DENOISE_SHARE  # of any GPU: no training has been measured
    )
    return Span(fast, slow)


def lora_parameters(size: ModelSize, rank: int) -> int:
    """Of the LoRA on both attentions' four projections and the feed-forward's two, in every block."""
    return size.layers * rank * (8 * 2 * size.dim + 2 * (size.dim + size.ffn_dim))


def activation_bytes(size: ModelSize, shape: Shape, *, recomputed: bool) -> int:
    """What all blocks keep in bf16 for the gradients of one clip, and what computing those takes."""
    tokens = size.tokens(shape)
    kept = block_bytes(size, tokens)
    if recomputed:  # the input of every block, and what one block keeps
        return input_bytes(size, shape) + int((1 + _WORKING_BLOCKS) * kept)
    return int((size.layers + _WORKING_BLOCKS) * kept)


def input_bytes(size: ModelSize, shape: Shape) -> int:
    """The inputs of all blocks."""
    return 2 * size.layers * size.tokens(shape) * size.dim


def block_bytes(size: ModelSize, tokens: int) -> int:
    """What one block keeps in bf16 for its gradients."""
    width = _WIDTH_BYTES + (_TIMESTEP_BYTES if size.timestep_per_token else 0)
    of_text = _TEXT_TOKENS * _TEXT_BYTES * size.dim
    return tokens * (width * size.dim + _FEED_FORWARD_BYTES * size.ffn_dim) + int(of_text)
