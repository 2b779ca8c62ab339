"""LoRAs on the experts: the distilled ones of `turbo`, and one that restyles.

`turbo` is trained by straightening: the guided teacher turns noise into clips, and the student learns the straight way
from each noise to its clip, at the four sigmas that the worker's distilled schedule stops at. What the teacher does
with guidance over many steps the student then does without, in four. The style LoRA is ordinary flow matching on the
training clips printed in sepia, which a linear map of the latents gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch.nn import functional

from training import sampling
from training.experts import Data, ExpertPlan, PaddedCrossAttention, conditions, flow_loss, known_frames
from training.running import Run
from worker.engine.modes import schedules
from worker.request import ModelSpec
from worker.training.loop import Schedule, descend

RANK = 8
_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2"]
# The luma weights of ITU-R BT.601, and the tint of the print.
LUMA = (0.299, 0.587, 0.114)
SEPIA = (1.0, 0.82, 0.58)


@dataclass(frozen=True, slots=True)
class Pairs:
    """What the teacher made: `noise` and `clips` [N, 16, T, h, w], the texts that asked, and what stood beside."""

    noise: torch.Tensor
    clips: torch.Tensor
    asked: sampling.Asked
    beside: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class LoraPlan:
    steps: int
    batch: int = 4
    learning_rate: float = 1e-3


def turbo_sigmas() -> list[float]:
    """1, 0.9375, 0.833, 0.625 and the end: the worker's four, shifted."""
    shift = schedules.FLOW_SHIFT
    return [shift * sigma / (1 + (shift - 1) * sigma) for sigma in schedules.SIGMAS] + [0.0]


def teach(
    experts: Sequence[WanTransformer3DModel],
    data: Data,
    spec: ModelSpec,
    *,
    count: int,
    steps: int,
    guidance: float,
    batch: int = 4,
    seed: int = 5,
) -> Pairs:
    """`count` clips that the guided experts make from captions of the training set, on the device of `data`."""
    torch.manual_seed(seed)
    device, beside = data.latents.device, None
    if spec.key == "t2v":
        data = data.openings()
    chosen = torch.randperm(len(data.latents), device=device)[:count]
    told = data.captions[chosen, 0]
    noise = torch.randn(len(chosen), *data.latents.shape[1:], device=device)
    if spec.key == "i2v":
        beside = conditions(data.latents[chosen].float(), data.blank, known=known_frames(len(chosen), device))
    asked = sampling.Asked(data.texts[told].float(), data.lengths[told])
    clips = []
    for start in range(0, len(chosen), batch):
        part = slice(start, start + batch)
        here = sampling.Asked(asked.texts[part], asked.lengths[part])
        quiet = data.unasked[:1].expand(len(here.lengths))
        path = sampling.sample(
            experts,
            noise[part],
            here,
            sampling.Asked(data.texts[quiet].float(), data.lengths[quiet]),
            steps=sampling.shifted(steps, spec.flow_shift),
            guidance=guidance,
            boundary=spec.boundary_ratio or 0.0,
            beside=None if beside is None else beside[part],
        )
        clips.append(path[-1])
    return Pairs(noise, torch.cat(clips), asked, beside)


def distil(run: Run, plan: LoraPlan, model: WanTransformer3DModel, pairs: Pairs, sigmas: Sequence[float]) -> None:
    """Train a new adapter of `model` on the straight way of `pairs`, at `sigmas`."""
    torch.manual_seed(run.seed)

    def loss() -> torch.Tensor:
        chosen = torch.randint(len(pairs.noise), (plan.batch,), device=pairs.noise.device)
        sigma = sigmas[int(torch.randint(len(sigmas), ()))]
        noise, clip = pairs.noise[chosen], pairs.clips[chosen]
        asked = sampling.Asked(pairs.asked.texts[chosen], pairs.asked.lengths[chosen])
        beside = None if pairs.beside is None else pairs.beside[chosen]
        answer = sampling.velocity(model, (1 - sigma) * clip + sigma * noise, sigma, asked, beside)
        return functional.mse_loss(answer, noise - clip)

    model.to(run.device).set_attn_processor(PaddedCrossAttention())
    train_adapter(run, plan, model, loss)


def style(run: Run, plan: LoraPlan, model: WanTransformer3DModel, data: Data, expert: ExpertPlan) -> None:
    """Train a new adapter of `model` by flow matching on `data`, which is restyled."""
    torch.manual_seed(run.seed)
    attention = PaddedCrossAttention()
    model.to(run.device).set_attn_processor(attention)
    data = data.openings().to(run.device)
    train_adapter(run, plan, model, lambda: flow_loss(model, attention, data, replace(expert, batch=plan.batch)))


def sepia(data: Data, normal: tuple[torch.Tensor, torch.Tensor]) -> Data:
    """The same clips in sepia. Every colour triple of a latent is mapped alike; slopes of brightness hardly change."""
    mean, std = (part.view(1, -1, 1, 1, 1).to(data.latents.device) for part in normal)
    raw = data.latents.float() * std + mean
    luma = raw.new_tensor(LUMA).view(1, 1, 3, 1, 1, 1)
    grey = ((raw[:, :12].unflatten(1, (4, 3)) + 1) / 2 * luma).sum(2, keepdim=True)
    tinted = grey * raw.new_tensor(SEPIA).view(1, 1, 3, 1, 1, 1) * 2 - 1
    slopes = raw[:, 12:] * (sum(SEPIA) / 3)
    styled = torch.cat([tinted.flatten(1, 2), slopes], 1)
    return replace(data, latents=((styled - mean) / std).half())


def train_adapter(run: Run, plan: LoraPlan, model: WanTransformer3DModel, loss_of: object) -> None:
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=_TARGETS, init_lora_weights=True))
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=plan.learning_rate, weight_decay=0.0, betas=(0.9, 0.99))
    schedule = Schedule(plan.learning_rate, warm_up=10, steps=plan.steps)
    for step in run.steps(plan.steps, {"model": model, "optimizer": optimizer}):
        loss = loss_of()  # type: ignore[operator]
        loss.backward()
        descend(learned, [optimizer], schedule, step, along=run.along)
        run.report(step, loss=float(loss.detach()))


def save(model: WanTransformer3DModel, path: Path) -> None:
    """The adapter as a LoRA file with PEFT's names; alpha is the rank, so that its scale is 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    factors = get_peft_model_state_dict(model)
    save_file({f"transformer.{name}": value.half().contiguous().cpu() for name, value in factors.items()}, path)
