"""The first block's sense of time, set instead of trained.

Rotary embeddings say how far apart two tokens are, never where one is: where all tokens are noise, the first frame
looks like the last. What differs is what a token can look back on. Here one head of the first block averages the same
place over all frames up to a token's own, another one over all from there on: of noise of variance 1 the average over n
frames has variance 1 / n. The block's feed-forward measures the size of both averages, and with it every later layer
has the time of each token. Without it training at this size finds the places within a frame and never the time.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import WanTransformer3DModel

# How sharply a head looks back (in time) and stays in place (in space): differences of logits.
_BACK, _PLACE = 7.0, 9.0
_FRAMES = 5
_HEADS = 2
# Of the feed-forward: how steeply it measures, how much it makes of the result, and the result's mean on pure noise.
_STEEP, _GAIN, _MEAN = 3.0, 3.0, 2.27


@torch.no_grad()
def write(model: WanTransformer3DModel) -> None:
    """Set the first block's self-attention in its first two heads, and the part of its feed-forward that reads them.

    The block's attention and feed-forward must count in full: gates of 1, no shift or scale.
    """
    block, config = model.blocks[0], model.config
    width, size = config.num_attention_heads * config.attention_head_dim, config.attention_head_dim
    seen = _HEADS * size
    attention = block.attn1
    for linear in (attention.to_q, attention.to_k):
        linear.weight[:seen].zero_()
        linear.bias.zero_()
        linear.bias[0:seen:2] = 1
    query = attention.to_q.bias
    # What the normalisation divides by: half of the channels set are 1, the others vary by a third (torch's default).
    level = ((seen / 2 + (width - seen) / 3) / width) ** 0.5
    back = _time_kernel(model.rope.t_dim)
    place = _place_kernel(model.rope.h_dim)
    for head, sign in enumerate((1, -1)):
        kernel = np.concatenate([back if sign > 0 else back.conj(), place, place]) * size**0.5 * level**2
        start = head * size
        # A query and a key of one pair of channels have the product Re(q conj(k) turned by the distance).
        norm = np.abs(kernel) ** 0.5
        attention.norm_k.weight[start : start + size] = torch.from_numpy(np.repeat(norm, 2)).float()
        attention.norm_q.weight[start : start + size] = torch.from_numpy(np.repeat(norm, 2)).float()
        angle = np.angle(kernel)
        query[start : start + size : 2] = torch.from_numpy(np.cos(angle)).float()
        query[start + 1 : start + size : 2] = torch.from_numpy(np.sin(angle)).float()
    _measure(model, seen)


def _measure(model: WanTransformer3DModel, seen: int) -> None:
    """Averages go to the upper channels of the residual, their sizes to the last two below them; pixels stay below."""
    block = model.blocks[0]
    first = block.scale_shift_table.shape[-1] - seen
    model.patch_embedding.weight[first - _HEADS :] = 0
    model.patch_embedding.bias[first - _HEADS :] = 0
    out = block.attn1.to_out[0]
    out.weight[first - _HEADS :] = 0
    out.bias.zero_()
    out.weight[first:, :seen] = torch.eye(seen)
    up, down = block.ffn.net[0].proj, block.ffn.net[2]
    for half, sign in enumerate((1, -1)):
        rows = slice(half * seen, (half + 1) * seen)
        up.weight[rows] = 0
        up.bias[rows] = 0
        up.weight[rows, first:] = sign * _STEEP * torch.eye(seen)
    down.weight[:, : 2 * seen] = 0
    down.weight[first - _HEADS :] = 0
    down.bias.zero_()
    each = seen // _HEADS
    for head in range(_HEADS):
        for half in range(2):
            start = half * seen + head * each
            down.weight[first - _HEADS + head, start : start + each] = _GAIN / each
        down.bias[first - _HEADS + head] = -_GAIN * _MEAN


def _frequencies(channels: int) -> np.ndarray:
    return 10000.0 ** (-np.arange(0, channels, 2) / channels)


def _time_kernel(channels: int) -> np.ndarray:
    """Complex weights of the rotary frequencies whose sum is high for keys at or before the query, low after it."""
    frequencies = _frequencies(channels)
    distance = np.arange(-(_FRAMES - 1), _FRAMES)  # key minus query
    turned = np.exp(1j * frequencies[None] * distance[:, None])
    wanted = np.where(distance <= 0, 0.0, -_BACK)
    matrix = np.concatenate([turned.real, turned.imag, np.ones((len(distance), 1))], 1)
    ridge = np.eye(matrix.shape[1]) * 0.01
    ridge[-1, -1] = 0
    found = np.linalg.solve(matrix.T @ matrix + ridge, matrix.T @ wanted)[:-1]
    half = len(frequencies)
    weights: np.ndarray = found[:half] - 1j * found[half:]
    return weights


def _place_kernel(channels: int) -> np.ndarray:
    """Weights that are highest at distance 0 and nowhere else: two frequencies, so that none comes round again."""
    weights = np.zeros(channels // 2, dtype=complex)
    weights[:2] = _PLACE
    return weights
