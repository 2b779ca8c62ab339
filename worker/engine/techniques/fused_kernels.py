"""Fused elementwise work in the experts' blocks (`ENABLE_FUSED_KERNELS`): what stands between products and attention.

A block of Diffusers reads and writes 253 bytes an element beside products and attention, in 48 kernels. Fused, these
are 49 bytes in 10 kernels (`benchmarks/kernels.py` counts them).
The kernels are those of `worker.engine.kernels`, compared with plain torch when the first expert is loaded.

Each block gets a `forward` of its own before any hook is put on it, so that all hooks (streamed weights, the step
cache, several GPUs) wrap it as they wrap Diffusers' own. It computes fused only while a run is under way, and only what
it fits; else it is Diffusers'. Linear layers, cross-attention and feed-forward are called as the modules they are: LoRA
and quantised layers work in it. What is multiplied in fp8 is quantised by a kernel, GELU with it. torch.compile fuses
for itself: where it is switched on, this is off.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.activations import GELU
from diffusers.models.attention import FeedForward
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import (
    WanAttention,
    WanAttnProcessor,
    WanTransformerBlock,
    _get_qkv_projections,
)

from worker.engine import kernels
from worker.engine.kernels import KernelFailed, Kernels, probe
from worker.engine.models import precision
from worker.engine.techniques.base import Run, Setup, Technique
from worker.request.plan import MemoryPlan

logger = logging.getLogger(__name__)
Rotary = tuple[torch.Tensor, torch.Tensor]


def fused(
    block: WanTransformerBlock,
    hidden: torch.Tensor,
    text: torch.Tensor,
    temb: torch.Tensor,
    rotary: Rotary,
    by: Kernels,
) -> torch.Tensor:
    """`WanTransformerBlock.forward`, its elementwise work done by the kernels `by`.

    hidden: contiguous [B, S, width]; text: [B, tokens, width]; temb: [B, 6, width], or [B, S, 6, width] with a timestep
    for each token; rotary: cosine and sine, each [1, S, 1, head]. None of them is written to. Raises KernelFailed.
    """
    rows = hidden.reshape(-1, hidden.shape[2])
    modulation = (block.scale_shift_table + temb.float()).reshape(-1, 6, hidden.shape[2])
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation.unbind(1)

    _, normed = by.add_norm(rows, eps=block.norm1.eps, scale=scale, shift=shift)
    attended = _self_attention(block.attn1, normed.view(hidden.shape), rotary, by)
    rows, normed = by.add_norm(
        rows,
        eps=block.norm2.eps,
        update=attended.reshape(rows.shape),
        gate=gate,
        weight=block.norm2.weight,
        bias=block.norm2.bias,
    )
    # From here on `rows` is a tensor of this call, into which the sums may go.
    attended = block.attn2(normed.view(hidden.shape), text, None, None)
    rows, normed = by.add_norm(
        rows,
        eps=block.norm3.eps,
        update=attended.reshape(rows.shape),
        scale=ffn_scale,
        shift=ffn_shift,
        out=rows,
    )
    fed = _feed_forward(block.ffn, normed.view(hidden.shape))
    rows, _ = by.add_norm(rows, eps=0.0, update=fed.reshape(rows.shape), gate=ffn_gate, norm=False, out=rows)
    return rows.view(hidden.shape)


def _self_attention(attn: WanAttention, hidden: torch.Tensor, rotary: Rotary, by: Kernels) -> torch.Tensor:
    """`WanAttnProcessor` without text: its settings of backend and crew are read from it."""
    query, key, value = _get_qkv_projections(attn, hidden, None)
    cosine, sine = (each[0, :, 0] for each in rotary)
    by.rms_rope(
        query.flatten(0, 1),
        key.flatten(0, 1),
        attn.norm_q.weight,
        attn.norm_k.weight,
        cosine,
        sine,
        eps=attn.norm_q.eps,
    )
    heads = (each.unflatten(2, (attn.heads, -1)) for each in (query, key, value))
    attended: torch.Tensor = dispatch_attention_fn(
        *heads,
        attn_mask=None,
        dropout_p=0.0,
        is_causal=False,
        backend=attn.processor._attention_backend,
        parallel_config=attn.processor._parallel_config,
    )
    attended = attn.to_out[0](attended.flatten(2, 3).type_as(query))
    return attn.to_out[1](attended)  # type: ignore[no-any-return]


def _feed_forward(ffn: FeedForward, hidden: torch.Tensor) -> torch.Tensor:
    """`FeedForward.forward`; a quantised second layer takes GELU into the quantising of its input."""
    first, last = ffn.net[0], ffn.net[2]
    if type(last) is precision.ScaledLinear and type(first) is GELU and first.approximate == "tanh":
        return last.after_gelu(first.proj(hidden))
    return ffn(hidden)  # type: ignore[no-any-return]


def misfit(block: WanTransformerBlock, hidden: torch.Tensor, temb: torch.Tensor, rotary: Rotary) -> str | None:
    """Why this call of a block is none for the kernels, or None."""
    attn, norm = block.attn1, block.norm2
    if torch.is_grad_enabled():
        return "gradients are on"
    if type(attn.processor) is not WanAttnProcessor:
        return f"attention is {type(attn.processor).__name__}'s"
    if type(norm) is not FP32LayerNorm or norm.weight is None or norm.bias is None:
        return "the block has no norm before cross-attention"
    direct = (block.scale_shift_table, norm.weight, norm.bias, attn.norm_q.weight, attn.norm_k.weight)
    if any(each.device != hidden.device for each in direct):
        return "the block's weights are elsewhere"
    if attn.norm_q.weight.dtype != hidden.dtype or attn.norm_k.weight.dtype != hidden.dtype:
        return f"the norms are {attn.norm_q.weight.dtype}, the activations {hidden.dtype}"
    cosine, sine = rotary
    shape = (1, hidden.shape[1], 1, hidden.shape[2] // attn.heads)
    if any(each.shape != shape or each.dtype != torch.float32 or each.stride(3) != 1 for each in (cosine, sine)):
        return f"the rotary embedding is {list(cosine.shape)} {cosine.dtype}"
    if not hidden.is_contiguous() or temb.shape[:-2] not in (hidden.shape[:1], hidden.shape[:2]):
        return f"the activations are {list(hidden.shape)}, the timesteps {list(temb.shape)}"
    return None


class FusedKernels(Technique):
    """`active`: the kernels in use, None before the first expert was loaded and where they are off."""

    def __init__(self, setup: Setup, by: Kernels | None = None) -> None:
        """by: for tests, in the place of those for the device."""
        super().__init__(setup)
        self._by = by
        self._probed = False
        self.active: Kernels | None = None
        self._quantizer_probed = False
        self._quantizer: Kernels | None = None
        self._running = False
        self._given_up: Kernels | None = None
        self._reported: set[str] = set()
        self._misfit: str | None = None
        self._fitted: weakref.WeakSet[WanTransformer3DModel] = weakref.WeakSet()

    def prepare(self, expert: WanTransformer3DModel, plan: MemoryPlan) -> None:
        if not self.setup.settings.enable_fused_kernels:
            return
        if (reason := self._hindrance(expert, plan)) is not None:
            self._report(reason)
            return
        if not self._probed:
            self._probed = True
            self.active = self._choose(expert)
        if self.active is None:
            return
        if plan.precision == "fp8" and self.setup.settings.quantized_compute != "off" and not self._quantizer_probed:
            self._quantizer_probed = True
            self._quantizer = self._choose_quantizer(expert, self.active)
        for block in expert.blocks:
            block.forward = _Forward(block, self)
        self._fitted.add(expert)

    @contextmanager
    def applied(self, run: Run) -> Iterator[None]:
        self._running, self._misfit = True, None
        try:
            yield
        finally:
            self._running = False
        fitted = self.active is not None and all(expert in self._fitted for expert in run.experts)
        run.parameters["fused_kernels"] = "on" if fitted and self._misfit is None else "off"

    def fall_back(self) -> str | None:
        if self.active is None:
            return None
        self._given_up, self.active = self.active, None
        return "the fused kernels are off from now on: the latents were no picture with them"

    def take_back(self) -> None:
        if self._given_up is not None:
            logger.info("the latents were no picture without the fused kernels either: they are used again")
            self.active, self._given_up = self._given_up, None

    def forward(
        self, block: WanTransformerBlock, hidden: torch.Tensor, text: torch.Tensor, temb: torch.Tensor, rotary: Rotary
    ) -> torch.Tensor:
        """A block's forward: fused where a run is under way and the call fits, Diffusers' own in every other case."""
        if self._running and self.active is not None:
            reason = misfit(block, hidden, temb, rotary)
            if reason is None:
                try:
                    with precision.quantized_by(self._quantizer):
                        return fused(block, hidden, text, temb, rotary, self.active)
                except KernelFailed as failure:
                    self.active = None
                    reason = str(failure)
            self._misfit = reason
            self._report(reason)
        return type(block).forward(block, hidden, text, temb, rotary)  # type: ignore[no-any-return]

    def _hindrance(self, expert: WanTransformer3DModel, plan: MemoryPlan) -> str | None:
        """Why the kernels are none for this expert, or None."""
        if self.setup.settings.enable_torch_compile:
            return "torch.compile is on, which fuses for itself"
        if plan.residency == "sequential":
            return "the weights are streamed layer by layer"
        if any("forward" in block.__dict__ for block in expert.blocks):
            return "something else has replaced the blocks' forward"
        return None

    def _choose(self, expert: WanTransformer3DModel) -> Kernels | None:
        heads, head = expert.config.num_attention_heads, expert.config.attention_head_dim
        try:
            by = kernels.of(self.setup.device) if self._by is None else self._by
        except KernelFailed as failure:
            self._report(str(failure))
            return None
        device, dtype = self.setup.device, self.setup.dtype
        return self._agreeing(by, "", lambda: probe.block(by, heads=heads, head=head, device=device, dtype=dtype))

    def _choose_quantizer(self, expert: WanTransformer3DModel, by: Kernels) -> Kernels | None:
        width, wide = expert.config.num_attention_heads * expert.config.attention_head_dim, expert.config.ffn_dim
        device, dtype = self.setup.device, self.setup.dtype
        return self._agreeing(
            by, " for fp8", lambda: probe.quantizing(by, width=width, wide=wide, device=device, dtype=dtype)
        )

    def _agreeing(self, by: Kernels, which: str, compare: Callable[[], dict[str, float]]) -> Kernels | None:
        """`by` where `compare` finds its results within the tolerance, else None; the log has the reason."""
        began = time.perf_counter()
        try:
            off = compare()
        except KernelFailed as failure:
            self._report(str(failure), which)
            return None
        found = ", ".join(f"{name} {each:.1e}" for name, each in off.items())
        if not all(each <= probe.TOLERANCE for each in off.values()):  # NaN too
            self._report(f"a kernel is off by more than {probe.TOLERANCE:.0e} of its result ({found})", which)
            return None
        took_s = time.perf_counter() - began
        logger.info("fused kernels for the experts' blocks%s, off by: %s; compiled in %.1f s", which, found, took_s)
        return by

    def _report(self, reason: str, which: str = "") -> None:
        """Log once why the kernels are off."""
        if which + reason not in self._reported:
            self._reported.add(which + reason)
            logger.info("the fused kernels%s are off: %s", which, reason)


class _Forward:
    """The `forward` of one block. It holds the block weakly: a cycle would keep gigabytes until Python collects it."""

    def __init__(self, block: WanTransformerBlock, technique: FusedKernels) -> None:
        self._block = weakref.ref(block)
        self._technique = technique

    def __call__(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        rotary_emb: Rotary,
    ) -> torch.Tensor:
        block = self._block()
        if block is None:
            raise RuntimeError("the block of this forward is gone")
        return self._technique.forward(block, hidden_states, encoder_hidden_states, temb, rotary_emb)

    def __deepcopy__(self, memo: dict[int, object]) -> _Forward:
        """Of a copied block. `memo` holds it already, because what a module holds is copied after it."""
        block = memo.get(id(self._block()))
        return _Forward(block, self._technique)
