"""Sampling inside the training, in batches: what the distillation's teacher does and what a look at progress needs.

Plain Euler steps over a shifted schedule, with guidance, each sigma by the expert whose side it is on. The worker's own
sampling is UniPC in Diffusers' pipelines; figures about quality are taken with that, not with this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from diffusers import WanTransformer3DModel

from training.experts import PaddedCrossAttention
from training.running import in_bf16


@dataclass(frozen=True, slots=True)
class Asked:
    """Text embeddings [B, L, text_dim], zeros behind each of `lengths` [B] tokens; L is above every length."""

    texts: torch.Tensor
    lengths: torch.Tensor

    def joined(self, other: Asked) -> Asked:
        longest = max(self.texts.shape[1], other.texts.shape[1])
        padded = [
            torch.nn.functional.pad(asked.texts, (0, 0, 0, longest - asked.texts.shape[1])) for asked in (self, other)
        ]
        return Asked(torch.cat(padded), torch.cat([self.lengths, other.lengths]))


def shifted(steps: int, shift: float) -> list[float]:
    """`steps` sigmas from 1 downwards and a last 0."""
    plain = np.linspace(1, 0, steps + 1)
    return [float(sigma) for sigma in shift * plain / (1 + (shift - 1) * plain)]


def expert_of(experts: Sequence[WanTransformer3DModel], sigma: float, boundary: float) -> WanTransformer3DModel:
    return experts[0] if len(experts) == 1 or sigma >= boundary else experts[1]


def velocity(
    model: WanTransformer3DModel, noisy: torch.Tensor, sigma: float, asked: Asked, beside: torch.Tensor | None
) -> torch.Tensor:
    """The model's answer, float32. The model must carry a PaddedCrossAttention."""
    attention = next(iter(model.attn_processors.values()))
    if not isinstance(attention, PaddedCrossAttention):
        raise TypeError("the model must carry a PaddedCrossAttention")
    attention.set(asked.lengths, asked.texts.shape[1])
    inner = noisy if beside is None else torch.cat([noisy, beside], 1)
    timestep = torch.full((len(noisy),), sigma * 1000, device=noisy.device)
    with in_bf16(noisy.device):
        answer: torch.Tensor = model(inner, timestep, asked.texts.float(), return_dict=False)[0]
    return answer.float()


@torch.no_grad()
def sample(
    experts: Sequence[WanTransformer3DModel],
    noise: torch.Tensor,
    asked: Asked,
    unasked: Asked,
    *,
    steps: Sequence[float],
    guidance: float,
    boundary: float,
    beside: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """The latents before each step and after the last, from `noise` at sigmas `steps`, which end with 0."""
    path = [noise]
    both = asked.joined(unasked)
    for sigma, following in pairwise(steps):
        noisy = path[-1]
        model = expert_of(experts, sigma, boundary)
        if guidance > 1:
            twice = None if beside is None else torch.cat([beside, beside])
            told, untold = velocity(model, torch.cat([noisy, noisy]), sigma, both, twice).chunk(2)
            answer = untold + guidance * (told - untold)
        else:
            answer = velocity(model, noisy, sigma, asked, beside)
        path.append(noisy + (following - sigma) * answer)
    return path


def preview(latents: torch.Tensor, normal: tuple[torch.Tensor, torch.Tensor]) -> np.ndarray:
    """Frames uint8 [B, 4 T - 3, h, w, 3] at an eighth of the size, read from the latents without the VAE.

    The first frame is the mean of its quarters; every later latent frame holds the colours of four frames.
    """
    mean, std = (part.view(1, -1, 1, 1, 1) for part in normal)
    colours = (latents * std + mean)[:, :12].unflatten(1, (4, 3))
    first = colours[:, :, :, :1].mean(1).movedim(1, -1)
    later = colours[:, :, :, 1:].permute(0, 3, 1, 4, 5, 2).flatten(1, 2)
    frames = torch.cat([first, later], 1)
    return ((frames.clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()
