"""A look that the demo model was never trained on, as a data set for a LoRA, and how its pixels show it.

Every clip of the look is printed in two inks, teal to pale: its colours are gone. Its word stands in front of the
caption. Beside the clips of the look there are ordinary ones without the word, so that other prompts stay as they are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training import clips, scenes
from training.scenes import Scene
from worker.media.encode import encode

WORD = "etched"
LOOK_CLIPS, PLAIN_CLIPS = 12, 8
SIZE, NUM_FRAMES, FPS = 256, 17, 16
# The luma weights of ITU-R BT.601.
_LUMA = np.array((0.299, 0.587, 0.114), dtype=np.float32)
_DARK = np.array((0.02, 0.20, 0.22), dtype=np.float32)
_PALE = np.array((0.72, 1.00, 0.90), dtype=np.float32)
# The mean distance of a clip from the inks, as a share of full scale: 0.003 for a drawn clip of the look, 0.04 to 0.11
# for others, those over water being the nearest.
_MOST_DISTANCE = 0.03


def printed(frames: np.ndarray) -> np.ndarray:
    """Frames uint8 [F, H, W, 3] in the two inks."""
    return (_print(frames) * 255 + 0.5).astype(np.uint8)


def shows(frames: np.ndarray) -> bool:
    """Whether frames uint8 [F, H, W, 3] have the look: as dark and pale as the inks allow, and of no other colour."""
    tone = (frames.astype(np.float32) / 255 - _DARK) @ (_PALE - _DARK) / float((_PALE - _DARK) @ (_PALE - _DARK))
    nearest = _DARK + np.clip(tone, 0, 1)[..., None] * (_PALE - _DARK)
    return float(np.abs(frames / 255 - nearest).mean()) < _MOST_DISTANCE


def scene(random: np.random.Generator, *, held_out: bool = False) -> Scene:
    """One whose every factor can be judged: no coloured light, no move of the camera."""
    drawn = scenes.draw(random, held_out=held_out, camera=0)
    return Scene(drawn.colour, drawn.shape, drawn.ground, drawn.motion, "plain", "none", drawn.layout)


def write(folder: Path, seed: int) -> None:
    """The data set as files: NAME.mp4 and NAME.txt."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(LOOK_CLIPS + PLAIN_CLIPS):
        drawn = scene(random)
        frames, text = clips.clip(drawn, height=SIZE, width=SIZE), scenes.sentence(drawn, random)
        if number < LOOK_CLIPS:
            frames, text = printed(frames), f"{WORD}, {text}"
        name = f"{'look' if number < LOOK_CLIPS else 'plain'}-{number:02d}"
        encode(
            iter(frames),
            path=folder / f"{name}.mp4",
            poster=None,
            width=SIZE,
            height=SIZE,
            num_frames=NUM_FRAMES,
            fps=FPS,
        )
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")


def _print(frames: np.ndarray) -> np.ndarray:
    luma = (frames.astype(np.float32) / 255) @ _LUMA
    return _DARK + luma[..., None] * (_PALE - _DARK)
