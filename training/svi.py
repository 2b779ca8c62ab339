"""LoRAs of Stable Video Infinity for the demo model: `python -m training.svi [--folder build/demo-svi] [--minutes M]`.

Long scenes are cut into clips as the worker cuts a video: each begins with five frames of the one before. An expert
learns by flow matching, on its own side of the boundary, to draw a clip whose condition is the first picture of its
scene, the last latents of the clip before, and zeros; or, for the first clip, the picture and zeros. What is handed
over is a little wrong in half of the cases, as what a model made is. Nothing else changes: rank, targets and file are
those of the demo's other LoRAs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch.nn import functional
from tqdm import tqdm
from transformers import AutoTokenizer, UMT5EncoderModel

from training import clips, lora, scenes, text
from training.experts import ExpertPlan, PaddedCrossAttention, Side, SpreadPositions, sigmas
from training.latents import latents_of
from training.plan import SERVED_SIZE, SIDES
from training.running import Run, in_bf16
from worker.request.catalogue import I2V_A14B
from worker.request.segments import SVI_OVERLAP
from worker.weights.sources.demo_trained import WEIGHTS

SEED, FRAMES = 23, 17
STRIDE = FRAMES - SVI_OVERLAP
# Clips of a scene. One that is not slow is drawn over all of them: so it is shown as slowly.
_CLIPS, _SLOW_SHARE = clips.SLOW_CLIPS, 0.7
_FIRST_SHARE, _UNASKED_SHARE, _WRONG = 0.2, 0.12, 0.1
PLAN = lora.LoraPlan(steps=200)


@dataclass(frozen=True, slots=True)
class Scenes:
    """Encoded clips of long scenes.

    `first`, `latents` [N, 16, T, h, w] normalised: of each scene its first clip, and a later one. `before`
    [N, 16, 1, h, w]: the last latents of the clip before that. `texts` [N + 1, L, TEXT_DIM] has zeros behind each
    caption, `lengths` [N + 1] in tokens; the last one asks for nothing.
    """

    first: torch.Tensor
    latents: torch.Tensor
    before: torch.Tensor
    texts: torch.Tensor
    lengths: torch.Tensor

    def to(self, device: torch.device) -> Scenes:
        return Scenes(**{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})


@torch.no_grad()
def draw(count: int, weights: Path, *, size: int, seed: int = SEED) -> Scenes:
    """`count` scenes of the training set, as the demo model's own parts in `weights` encode them."""
    random = np.random.default_rng((seed, size))
    config = AutoencoderKLWan.load_config(str(weights / "vae"))
    mean, std = (torch.tensor(config[name]).view(-1, 1, 1, 1) for name in ("latents_mean", "latents_std"))

    def encoded(pixels: np.ndarray) -> torch.Tensor:
        return ((torch.from_numpy(latents_of(pixels)) - mean) / std).half()

    drawn: list[tuple[torch.Tensor, ...]] = []
    captions = []
    for _ in tqdm(range(count), desc=f"scenes of {size}", mininterval=5):
        scene = scenes.paced(scenes.draw(random, held_out=False), random, share=_SLOW_SHARE)
        start = int(random.integers(1, _CLIPS)) * STRIDE
        first, before, later = map(encoded, _shown(scene, size, (0, start - STRIDE, start)))
        drawn.append((first, later, before[:, -1:]))
        captions.append(scenes.caption(scene, random))
    words: Any = AutoTokenizer.from_pretrained(weights / "tokenizer")
    reader: Any = UMT5EncoderModel.from_pretrained(weights / "text_encoder", dtype=torch.float32).eval()
    embedded = text.embeddings(words, reader, [*captions, text.unasked(random)])
    lengths = torch.tensor([len(states) for states in embedded])
    # As in `training.data`.
    texts = torch.zeros(len(embedded), int(lengths.max()) // 8 * 8 + 8, text.TEXT_DIM, dtype=torch.float16)
    for row, states in zip(texts, embedded, strict=True):
        row[: len(states)] = states.half()
    first, latents, before = (torch.stack(part) for part in zip(*drawn, strict=True))
    return Scenes(first, latents, before, texts, lengths)


def _shown(scene: scenes.Scene, size: int, starts: Sequence[int]) -> list[np.ndarray]:
    """Clips of a scene that begin at frames `starts`."""
    if scene.slow:
        return [clips.clip(scene, height=size, width=size, num_frames=FRAMES, first=start) for start in starts]
    frames = clips.clip(scene, height=size, width=size, num_frames=FRAMES + (_CLIPS - 1) * STRIDE)
    return [frames[start : start + FRAMES] for start in starts]


def conditions(anchor: torch.Tensor, before: torch.Tensor, frames: int) -> torch.Tensor:
    """What the worker puts beside the noise, [B, 20, frames, h, w]; see `worker.engine.modes.svi`.

    anchor, before: latents [B, 16, 1, h, w]. Zeros in `before` are the first clip's.
    """
    latents = anchor.new_zeros(*anchor.shape[:2], frames, *anchor.shape[3:])
    latents[:, :, :1], latents[:, :, 1:2] = anchor, before
    mask = torch.zeros_like(latents[:, :4])
    mask[:, :, 0] = 1
    return torch.cat([mask, latents], 1)


def loss_of(
    model: WanTransformer3DModel, attention: PaddedCrossAttention, data: Scenes, plan: ExpertPlan
) -> torch.Tensor:
    device, wide = data.latents.device, (-1, 1, 1, 1, 1)
    chosen = torch.randint(len(data.latents), (plan.batch,), device=device)
    opens = (torch.rand(plan.batch, device=device) < _FIRST_SHARE).view(wide)
    clean = torch.where(opens, data.first[chosen], data.latents[chosen]).float()
    before = data.before[chosen].float()
    wrong = _WRONG * (torch.rand(plan.batch, device=device) < 0.5).view(wide)
    before = torch.where(opens, torch.zeros_like(before), before + wrong * torch.randn_like(before))
    sigma = sigmas(plan, plan.batch, device)
    noise = torch.randn_like(clean)
    noisy = (1 - sigma.view(wide)) * clean + sigma.view(wide) * noise
    beside = conditions(data.first[chosen, :, :1].float(), before, clean.shape[2])
    unasked = torch.rand(plan.batch, device=device) < plan.unasked_share
    told = torch.where(unasked, len(data.lengths) - 1, chosen)
    attention.set(data.lengths[told], data.texts.shape[1])
    with in_bf16(device):
        velocity = model(torch.cat([noisy, beside], 1), sigma * 1000, data.texts[told].float(), return_dict=False)[0]
    return functional.mse_loss(velocity.float(), noise - clean)


def train(run: Run, plan: lora.LoraPlan, side: Side, model: WanTransformer3DModel, data: Scenes) -> None:
    """Train a new adapter of `model`, the image-to-video expert of that side."""
    torch.manual_seed(run.seed)
    assert I2V_A14B.boundary_ratio is not None
    boundary, shift = I2V_A14B.boundary_ratio, I2V_A14B.flow_shift
    expert = ExpertPlan(side, "both", boundary, shift, plan.steps, plan.batch, unasked_share=_UNASKED_SHARE)
    attention = PaddedCrossAttention()
    model.to(run.device).set_attn_processor(attention)
    data = data.to(run.device)
    rope = model.rope
    model.rope = SpreadPositions(rope, SERVED_SIZE // 8 // data.latents.shape[-1])
    lora.train_adapter(run, plan, model, lambda: loss_of(model, attention, data, expert))
    model.rope = rope


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/demo-svi"), help="for checkpoints and losses")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="the demo model's; loras/svi-*.safetensors go in")
    parser.add_argument("--scenes", type=int, default=240)
    parser.add_argument("--size", type=int, default=SERVED_SIZE, help="of the clips; at 128 a step takes a quarter")
    parser.add_argument("--steps", type=int, default=PLAN.steps, help="of each expert")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="of the experts, one after the other")
    parser.add_argument("--minutes", type=float, help="the longest that one expert may take")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="threads of torch on the CPU")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    data = draw(options.scenes, options.weights, size=options.size)
    for side in options.sides:
        model = WanTransformer3DModel.from_pretrained(
            str(options.weights / "experts" / side), torch_dtype=torch.float32
        )
        run = Run(
            f"svi-{side}",
            options.folder,
            seed=SEED + SIDES.index(side),
            minutes=options.minutes,
            device=torch.device(options.device),
        )
        train(run, lora.LoraPlan(options.steps), side, model, data)
        lora.save(model, options.weights / "loras" / f"svi-{side}.safetensors")


if __name__ == "__main__":
    main()
