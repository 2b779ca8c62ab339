"""A small `AutoencoderKLWan` with the A14B's strides (8 in space, 4 in time) and 16 channels; its decoder is trained.

The encoder is set by `training.encoder`. The decoder begins as that transform undone, in blocks of 8 x 8 pixels, and
learns on small crops to draw edges and motion within them. It is convolutional but for one attention in its middle,
so it serves every size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from training import clips, encoder, scenes
from training.latents import latents_of
from training.running import Average, Run
from worker.training.loop import Schedule, descend

CONFIG: dict[str, Any] = {
    "base_dim": 16,
    "decoder_base_dim": 32,
    "z_dim": encoder.CHANNELS,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [True, True],
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
}
# Latents from the experts are never quite clean: the decoder learns to bear with this deviation.
_NOISE = 0.03
_SIZE = 256
_CROP = 64
# Three steps of the decoder: its cache is in full use from the third on.
_FRAMES = 9
_COLOUR, _CONSTANT, _CONSTANT_SIZE = 16, 31, 8.0


@dataclass(frozen=True, slots=True)
class VaePlan:
    steps: int = 5000
    batch: int = 2
    pool: int = 64
    learning_rate: float = 4e-4


def new(mean: list[float] | None = None, std: list[float] | None = None) -> AutoencoderKLWan:
    """The VAE before any training: it averages blocks and paints them back."""
    vae = AutoencoderKLWan(**CONFIG, latents_mean=mean or [0.0] * 16, latents_std=std or [1.0] * 16)
    encoder.write(vae)
    _undo_blocks(vae)
    return vae


@torch.no_grad()
def _undo_blocks(vae: AutoencoderKLWan) -> None:
    """Let the decoder begin as the encoder's transform undone.

    Residual branches begin as nothing. Colour travels in channels 16 to 18 and, negated, in 19 to 21:
    silu(a) - silu(-a) is a, so that the last nonlinearity does not bend it.
    """
    for name, module in [*vae.decoder.named_modules(), ("post_quant_conv", vae.post_quant_conv)]:
        if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d):
            assert module.bias is not None
            module.bias.zero_()
            if not name.endswith(("conv1", "to_qkv")):
                module.weight.zero_()
                _pass_on(module)
            if name.endswith(("conv2", "mid_block.attentions.0.proj")):
                module.weight.zero_()
    decoder = vae.decoder
    decoder.conv_in.bias[_CONSTANT] = _CONSTANT_SIZE
    decoder.conv_in.weight[_CONSTANT] = 0
    for colour in range(3):
        for place, sign in ((_COLOUR + colour, 1.0), (_COLOUR + 3 + colour, -1.0)):
            decoder.conv_in.weight[place] = 0
            decoder.conv_in.weight[place, colour:12:3, -1, 1, 1] = sign / 4
            for frame in range(2):
                decoder.up_blocks[1].upsamplers[0].time_conv.weight[64 * frame + place] = 0
                decoder.up_blocks[1].upsamplers[0].time_conv.weight[64 * frame + place, 3 * frame + colour, -1] = sign
            scale = _CONSTANT_SIZE / 32**0.5 * sign
            decoder.conv_out.weight[4 * colour : 4 * colour + 4, place, -1, 1, 1] = scale
    split = decoder.up_blocks[0].upsamplers[0].time_conv.weight
    for pair in range(2):
        for channel in range(6):
            split[64 * pair + channel] = 0
            split[64 * pair + channel, 6 * pair + channel, -1] = 1


def _pass_on(module: torch.nn.Conv2d | torch.nn.Conv3d) -> None:
    """Channel to channel in the middle of the kernel, newest frame; nothing where the last layer chooses its own."""
    into, out = module.in_channels, module.out_channels
    if (into, out) == (32, 12):
        return
    height = module.kernel_size[-1] // 2
    for target in range(out):
        source = target % into
        if target < into or out == 2 * into:
            kernel = module.weight[target, source]
            (kernel[-1] if kernel.ndim == 3 else kernel)[height, height] = 1


def train(run: Run, plan: VaePlan) -> Average:
    """Train the decoder from `run`'s last checkpoint, or from nothing, to the end of `plan`."""
    torch.manual_seed(run.seed)
    random = np.random.default_rng(run.seed)
    vae = new().train().to(run.device)
    frames = pool(random, plan.pool, size=_SIZE)
    learned = torch.nn.ModuleList([vae.decoder, vae.post_quant_conv])
    average = Average(vae, decay=0.99)
    optimizer = torch.optim.AdamW(learned.parameters(), lr=plan.learning_rate, weight_decay=0.0, betas=(0.9, 0.99))
    schedule = Schedule(plan.learning_rate, warm_up=50, steps=plan.steps)
    for step in run.steps(plan.steps, {"model": vae, "optimizer": optimizer, "average": average}):
        crops = [_crop(frames[int(random.integers(len(frames)))], random) for _ in range(plan.batch)]
        latents = torch.stack([torch.from_numpy(latents_of(crop)) for crop in crops]).to(run.device)
        with torch.autocast(run.device.type, torch.bfloat16):
            decoded = _decode(vae, latents + _NOISE * torch.randn_like(latents)).float()
        difference = decoded - torch.stack([to_pixels(crop) for crop in crops]).to(run.device)
        square = difference.square().mean()
        loss = difference.abs().mean() + 2 * square
        loss.backward()
        descend(learned.parameters(), [optimizer], schedule, step, along=run.along)
        average.update(vae)
        run.report(step, loss=float(loss.detach()), psnr_db=float(-10 * torch.log10(square.detach() / 4)))
    return average


def pool(random: np.random.Generator, count: int, *, size: int) -> list[np.ndarray]:
    drawn = (scenes.draw(random, held_out=False) for _ in range(count))
    return [clips.clip(scene, height=size, width=size) for scene in drawn]


def to_pixels(frames: np.ndarray) -> torch.Tensor:
    """float32 [3, frames, height, width] in -1 to 1 of uint8 [frames, height, width, 3]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2).float() / 127.5 - 1


def _crop(frames: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Some frames of a crop near the middle, where the object is, as often as anywhere."""
    near = random.normal(_SIZE / 2, _SIZE / 5, 2) - _CROP / 2
    top, left = np.clip(near, 0, _SIZE - _CROP).astype(int)
    first = int(random.integers(len(frames) - _FRAMES + 1))
    return frames[first : first + _FRAMES, top : top + _CROP, left : left + _CROP]


def _decode(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """`vae.decode` without its clamp, through which no gradient comes back."""
    clamp, torch.clamp = torch.clamp, lambda value, min, max: value  # type: ignore[assignment] # noqa: ARG005
    try:
        decoded: torch.Tensor = vae.decode(latents, return_dict=False)[0]
    finally:
        torch.clamp = clamp
    return decoded


def save(vae: AutoencoderKLWan, folder: Path) -> None:
    vae.to(torch.float16).save_pretrained(str(folder))
    vae.to(torch.float32)
