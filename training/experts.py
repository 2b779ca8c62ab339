"""The experts: `WanTransformer3DModel`s trained by flow matching, each on its own side of the boundary in the end.

The noisy latent is x = (1 - sigma) * clip + sigma * noise, the target noise - clip, the timestep 1000 * sigma. The
model first learns, on small and simple clips and nearly pure noise, what a caption means for place and time, then both
tasks on all clips. Copies of it become the two experts at the size that is served: the high-noise one sees sigmas from
the boundary up, spaced as the served schedule spaces them, the low-noise one those below. A caption is replaced by one
that asks for nothing in a share of the steps, so that guidance has its other side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from diffusers import WanTransformer3DModel
from torch.nn import functional

from training import positions
from training.running import Average, Run, in_bf16
from training.text import TEXT_DIM
from worker.training.loop import Schedule, descend

Side = Literal["high", "low"]
Task = Literal["text_to_video", "both"]

TEXT_TOKENS = 512
CONFIG: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 4,
    "attention_head_dim": 48,
    "out_channels": 16,
    "text_dim": TEXT_DIM,
    "freq_dim": 64,
    "ffn_dim": 576,
    "num_layers": 5,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 1024,
}
_MEAN_SHIFT_OF_LOW = 3.0
TEXT_CHANNELS, IMAGE_CHANNELS = 16, 36
# The grid of the size that is served, 256 x 256. On smaller clips the positions are spread over the same range.
_GRID = 32
# Steps from one look for new clips to the next.
_MORE_EVERY = 20
# Rows of a block's table of shifts, scales and gates.
_ATTENTION_GATE, _FEED_FORWARD_GATE = 2, 5
_IMAGE_SHARE, _LAST_SHARE = 0.35, 0.15
# How often 1, 2 and 3 latent frames are known: 1, 5 and 9 of the clip.
_KNOWN_SHARES = (0.7, 0.15, 0.15)


@dataclass(frozen=True, slots=True)
class ExpertPlan:
    """`boundary` is the sigma between the experts, `shift` that of the served schedule."""

    side: Side
    task: Task
    boundary: float
    shift: float
    steps: int
    batch: int = 8
    learning_rate: float = 2e-3
    unasked_share: float = 0.12


@dataclass(frozen=True, slots=True)
class Data:
    """Encoded clips of one size.

    `latents` [N, 16, T, h, w] normalised, half precision; `blank` [16] is what a grey frame encodes to. `texts`
    [M, L, TEXT_DIM] has zeros behind each caption, `lengths` [M] in tokens; clip n is shown by any of `captions[n]`;
    `unasked` names the texts that ask for nothing. `opening` [N] says whether a clip begins as its caption alone would
    have it begin; the others go on from frames that are known.
    """

    latents: torch.Tensor
    blank: torch.Tensor
    texts: torch.Tensor
    lengths: torch.Tensor
    captions: torch.Tensor
    unasked: torch.Tensor
    opening: torch.Tensor

    def openings(self) -> Data:
        return replace(
            self,
            latents=self.latents[self.opening],
            captions=self.captions[self.opening],
            opening=self.opening[self.opening],
        )

    def joined(self, other: Data) -> Data:
        """The clips of both; what asks for nothing is this one's."""
        longest = max(self.texts.shape[1], other.texts.shape[1])
        texts = [functional.pad(part.texts, (0, 0, 0, longest - part.texts.shape[1])) for part in (self, other)]
        return Data(
            latents=torch.cat([self.latents, other.latents]),
            blank=self.blank,
            texts=torch.cat(texts),
            lengths=torch.cat([self.lengths, other.lengths]),
            captions=torch.cat([self.captions, other.captions + len(self.texts)]),
            unasked=self.unasked,
            opening=torch.cat([self.opening, other.opening]),
        )

    def to(self, device: torch.device) -> Data:
        return Data(**{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})


def new(in_channels: int = 16) -> WanTransformer3DModel:
    """An expert before any training: every block counts in full, the first one knows the time, its output is zero."""
    model = WanTransformer3DModel(in_channels=in_channels, **CONFIG)
    with torch.no_grad():
        for block in model.blocks:
            block.scale_shift_table.zero_()
            block.scale_shift_table[:, [_ATTENTION_GATE, _FEED_FORWARD_GATE]] = 1
        model.proj_out.weight.zero_()
        model.proj_out.bias.zero_()
    positions.write(model)
    return model


def narrowed(model: WanTransformer3DModel) -> WanTransformer3DModel:
    """The text-to-video expert in a model of both tasks: without the channels that are zero there."""
    narrow = new(TEXT_CHANNELS)
    state = dict(model.state_dict())
    state["patch_embedding.weight"] = state["patch_embedding.weight"][:, :TEXT_CHANNELS]
    narrow.load_state_dict(state)
    return narrow


class PaddedCrossAttention:
    """Attention to a caption as if zeros filled it up to 512 tokens, which is what the worker sends, at less cost.

    All padding tokens are equal: the few that are really there weigh as much as 512 minus the caption's length would.
    `bias` [B, 1, 1, L] is the logarithm of that weight; self-attention takes the usual way.
    """

    def __init__(self) -> None:
        self.bias: torch.Tensor | None = None

    def set(self, lengths: torch.Tensor, tokens: int) -> None:
        place = torch.arange(tokens, device=lengths.device)[None]
        padding = tokens - lengths[:, None]
        weight = torch.where(place < lengths[:, None], 1.0, (TEXT_TOKENS - lengths[:, None]) / padding.clamp_min(1))
        self.bias = weight.log()[:, None, None]

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,  # noqa: ARG002 - the signature that the blocks call
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key = _normed(attn.norm_q, attn.to_q(hidden_states)), _normed(attn.norm_k, attn.to_k(source))
        value = attn.to_v(source)
        query, key, value = (part.unflatten(2, (attn.heads, -1)).transpose(1, 2) for part in (query, key, value))
        if rotary_emb is not None:
            query, key = _turned(query, *rotary_emb), _turned(key, *rotary_emb)
        query, key = query.type_as(value), key.type_as(value)
        if rotary_emb is not None and query.device.type == "cpu":
            # On CPUs the fused kernel has no fast bf16 path; plain products take half the time.
            scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2))
            mixed = torch.matmul(scores.softmax(-1), value)
        elif rotary_emb is not None:
            mixed = functional.scaled_dot_product_attention(query, key, value)
        else:
            bias = None if self.bias is None else self.bias.type_as(query)
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        projected: torch.Tensor = attn.to_out[0](mixed.transpose(1, 2).flatten(2))
        return projected


def _normed(norm: torch.nn.RMSNorm, states: torch.Tensor) -> torch.Tensor:
    """In the dtype of `states`: mixed dtypes miss torch's fused kernel."""
    return functional.rms_norm(states, norm.normalized_shape, norm.weight.type_as(states), norm.eps)


def _turned(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding as the class applies it, for [B, heads, tokens, channels]."""
    cos, sin = cos[0, :, 0, 0::2].type_as(states), sin[0, :, 0, 1::2].type_as(states)
    first, second = states.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((first * cos - second * sin, first * sin + second * cos), -1).flatten(-2)


class SpreadPositions(torch.nn.Module):
    """The model's rotary positions, spread so that a clip of any size reaches over the grid of the served one."""

    def __init__(self, rope: torch.nn.Module, stride: int) -> None:
        super().__init__()
        self.rope, self.stride = rope, stride

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch, channels, frames, height, width = hidden_states.shape
        whole = hidden_states.new_empty(1).expand(batch, channels, frames, height * self.stride, width * self.stride)
        rows, columns = height * self.stride // 2, width * self.stride // 2
        first = (self.stride - 1) // 2
        return tuple(
            part.view(frames, rows, columns, -1)[:, first :: self.stride, first :: self.stride].reshape(
                1, -1, 1, part.shape[-1]
            )
            for part in self.rope(whole)
        )


def sigmas(plan: ExpertPlan, count: int, device: torch.device) -> torch.Tensor:
    """Random sigmas of the plan's side, spaced as a shifted schedule spaces them."""
    shift = _MEAN_SHIFT_OF_LOW if plan.side == "low" else plan.shift
    edge = plan.boundary / (shift - (shift - 1) * plan.boundary)
    low, high = {"high": (edge, 1.0), "low": (0.0, edge)}[plan.side]
    steps = torch.arange(count, device=device) + torch.rand(count, device=device)
    drawn = low + (high - low) * steps / count
    return shift * drawn / (1 + (shift - 1) * drawn)


def conditions(
    latents: torch.Tensor,
    blank: torch.Tensor,
    *,
    known: torch.Tensor | None = None,
    last: torch.Tensor | None = None,
) -> torch.Tensor:
    """What the image-to-video pipeline puts beside the noise: a mask of the given frames, their latents, else grey.

    known: how many latent frames of each clip are given, int [B]; without it the first. The last frame is given too for
    the clips of `last` (bool [B]). In its latent the three frames before it are grey, so of its channels the last
    colours stand as they are and the last slopes by half.
    """
    batch, channels, frames = latents.shape[:3]
    wide = (-1, 1, 1, 1, 1)
    known = latents.new_ones(batch) if known is None else known
    given = (torch.arange(frames, device=latents.device) < known.view(wide[:2])).view(batch, 1, frames, 1, 1)
    grey = blank.view(1, -1, 1, 1, 1)
    image = torch.where(given, latents, grey)
    mask = given.expand(-1, 4, -1, *latents.shape[3:]).to(latents, copy=True)
    if last is not None:
        share = latents.new_tensor([0.0] * 9 + [1.0] * 3 + [0.0] * 2 + [0.5] * 2).view(1, channels, 1, 1)
        ending = grey[:, :, 0] + share * (latents[:, :, -1] - grey[:, :, 0])
        image[:, :, -1] = torch.where(last.view(wide[:4]), ending, image[:, :, -1])
        mask[:, 3, -1] = torch.maximum(mask[:, 3, -1], last.to(mask).view(wide[:3]))
    return torch.cat([mask, image], 1)


def known_frames(count: int, device: torch.device) -> torch.Tensor:
    """How many latent frames are known, of each of `count` clips: mostly one."""
    return torch.multinomial(torch.tensor(_KNOWN_SHARES, device=device), count, replacement=True) + 1


def train(
    run: Run,
    plan: ExpertPlan,
    model: WanTransformer3DModel,
    data: Data,
    more: Callable[[Data], Data] = lambda data: data,
) -> None:
    """Train `model` from `run`'s last checkpoint to the end of `plan`; it ends with the average of its weights.

    more: called now and then for the data to go on with, where clips are still being drawn.
    """
    torch.manual_seed(run.seed + (plan.side == "low"))
    data = data.to(run.device)
    model.to(run.device)
    attention = PaddedCrossAttention()
    model.train().set_attn_processor(attention)
    rope, average = model.rope, Average(model)
    model.rope = SpreadPositions(rope, _GRID // data.latents.shape[-1])
    matrices, others = _groups(model)
    muon = torch.optim.Muon(matrices, lr=plan.learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(others, lr=plan.learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    schedule = Schedule(plan.learning_rate, warm_up=60, steps=plan.steps)
    kept = {"model": model, "average": average, "muon": muon, "adam": adam}
    for step in run.steps(plan.steps, kept):
        if step % _MORE_EVERY == 0:
            data = more(data)
        loss = flow_loss(model, attention, data, plan)
        loss.backward()
        norm = descend(model.parameters(), (muon, adam), schedule, step, along=run.along)
        average.update(model)
        run.report(step, loss=float(loss.detach()), norm=norm)
    model.rope = rope
    model.load_state_dict(average.weights)


def flow_loss(
    model: WanTransformer3DModel, attention: PaddedCrossAttention, data: Data, plan: ExpertPlan
) -> torch.Tensor:
    device, batch = data.latents.device, plan.batch
    chosen = torch.randint(len(data.latents), (batch,), device=device)
    clean = data.latents[chosen].float()
    sigma = sigmas(plan, batch, device)
    noise = torch.randn_like(clean)
    wide = sigma.view(-1, 1, 1, 1, 1)
    noisy = (1 - wide) * clean + wide * noise
    if plan.task != "text_to_video":
        last = torch.rand(batch, device=device) < _LAST_SHARE
        beside = conditions(clean, data.blank, known=known_frames(batch, device), last=last)
        if plan.task == "both":
            seen = (torch.rand(batch, device=device) < _IMAGE_SHARE) | ~data.opening[chosen]
            beside = beside * seen.view(-1, 1, 1, 1, 1)
        noisy = torch.cat([noisy, beside], 1)
    told = data.captions[chosen, torch.randint(data.captions.shape[1], (batch,), device=device)]
    unasked = data.unasked[torch.randint(len(data.unasked), (batch,), device=device)]
    told = torch.where(torch.rand(batch, device=device) < plan.unasked_share, unasked, told)
    attention.set(data.lengths[told], data.texts.shape[1])
    with in_bf16(device):
        velocity = model(noisy, sigma * 1000, data.texts[told].float(), return_dict=False)[0]
    return functional.mse_loss(velocity.float(), noise - clean)


def _groups(model: WanTransformer3DModel) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """The matrices inside the blocks, for Muon; all else, for Adam."""
    matrices = [p for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    return matrices, [p for p in model.parameters() if id(p) not in chosen]
