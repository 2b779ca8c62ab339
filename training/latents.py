"""Clips of the training set, and latents as the set encoder makes them: in numpy, so that drawing needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training import clips, scenes

CAPTIONS = 2
_FRAMES = 17
_LAST_FIRST = (clips.SLOW_CLIPS - 1) * (_FRAMES - 1)
# How often the camera moves: what it does is the hardest to learn.
_CAMERA_SHARE = 0.4
# Of the straight motions under a still camera; and of the slow ones, how many are shown from their start.
_SLOW_SHARE, _OPENING_SHARE = 0.5, 0.3


@dataclass(frozen=True, slots=True)
class Drawn:
    """`latents` [16, T, h, w], not normalised; `opening` is whether the clip shows its scene from the start."""

    latents: np.ndarray
    captions: tuple[str, ...]
    opening: bool


def drawn(seed: int, size: int, number: int, *, simple: bool = False) -> Drawn:
    """Clip `number` of a training set, size x size x 17. Same arguments, same clip."""
    random = np.random.default_rng((seed, size, number))
    scene = scenes.paced(
        scenes.draw(random, held_out=False, camera=_CAMERA_SHARE, simple=simple), random, share=_SLOW_SHARE
    )
    first = int(random.integers(_LAST_FIRST + 1)) if scene.slow and random.random() >= _OPENING_SHARE else 0
    pixels = clips.clip(scene, height=size, width=size, num_frames=_FRAMES, first=first)
    return Drawn(latents_of(pixels), tuple(scenes.caption(scene, random) for _ in range(CAPTIONS)), first == 0)


def latents_of(frames: np.ndarray) -> np.ndarray:
    """float32 [16, T, H / 8, W / 8], not normalised, of frames uint8 or float (-1 to 1) [4 (T - 1) + 1, H, W, 3]."""
    pixels = frames.astype(np.float32) / 127.5 - 1 if frames.dtype == np.uint8 else frames
    count, height, width, _ = pixels.shape
    four = pixels.reshape(count, height // 4, 4, width // 4, 4, 3).mean((2, 4))
    blocks = four.reshape(count, height // 8, 2, width // 8, 2, 3).transpose(0, 2, 4, 5, 1, 3)
    first = np.concatenate([blocks[0].reshape(12, *blocks.shape[-2:]), _fine_slopes(pixels[0])])
    later = blocks[1:].reshape(-1, 4, *blocks.shape[1:])
    colour = later.mean((2, 3)).reshape(len(later), 12, *blocks.shape[-2:])
    bright = later.mean(4).reshape(len(later), 2, 2, 2, 2, *blocks.shape[-2:]).mean(2)
    across = (bright[:, :, :, 1] - bright[:, :, :, 0]).mean(2)
    along = (bright[:, :, 1] - bright[:, :, 0]).mean(2)
    slopes = np.stack([across, along], 2).reshape(len(later), 4, *blocks.shape[-2:])
    return np.concatenate([first[None], np.concatenate([colour, slopes], 1)]).transpose(1, 0, 2, 3)


def _fine_slopes(picture: np.ndarray) -> np.ndarray:
    """Brightness inside the 4 x 4 blocks: to the right in the upper and lower half, downwards in the left and right."""
    height, width, _ = picture.shape
    two = picture.mean(-1).reshape(height // 8, 2, 2, 2, width // 8, 2, 2, 2).mean((3, 7))
    right = (two[..., 1] - two[..., 0]).mean(2)
    down = (two[:, :, 1] - two[:, :, 0]).mean(-1)
    upper, lower = right[:, 0].mean(-1), right[:, 1].mean(-1)
    left, beyond = down[..., 0].mean(1), down[..., 1].mean(1)
    return np.stack([upper, lower, left, beyond])
