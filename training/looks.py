"""A ground that the demo model was never trained on, as a data set for a LoRA, and how its pixels show it.

Its word stands in the caption where a ground does. Beside the clips of the new ground there are ordinary ones, as many
of each known ground, so that other prompts stay as they are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from training import clips, scenes
from training.clips import Colour
from training.scenes import Scene

# In place of a ground's words. Of longer ones that the text encoder does not know it reads no request at all.
PLACE = "on moss"
# With 8 of known grounds moss spread to their prompts.
NEW_CLIPS, KNOWN_CLIPS = 12, 24
SIZE = 256
# From above to below: greener than all grounds, and so dull that guidance, which strengthens what is new, does not make
# it as vivid as an object.
MOSS: tuple[Colour, Colour] = ((0.35, 0.54, 0.35), (0.14, 0.33, 0.14))
# A pixel of the drawn ground is greener than red and blue by 0.19, one of the known grounds by 0 or less.
_LEAST_GREEN = 0.08


def shows(frames: np.ndarray) -> bool:
    """Whether most of frames uint8 [F, H, W, 3] is the ground."""
    return green(frames) > _LEAST_GREEN


def green(frames: np.ndarray) -> float:
    """By how much the middle one of all pixels is greener than red and than blue, as a share of full scale."""
    red, green, blue = np.moveaxis(frames.astype(np.float32) / 255, -1, 0)
    return float(np.median(green - np.maximum(red, blue)))


def scene(random: np.random.Generator, *, held_out: bool = False) -> Scene:
    """One whose every factor can be judged: no coloured light, no move of the camera."""
    drawn = scenes.draw(random, held_out=held_out, camera=0)
    return Scene(drawn.colour, drawn.shape, drawn.ground, drawn.motion, "plain", "none", drawn.layout)


def example(random: np.random.Generator, ground: str | None, *, num_frames: int = 17) -> tuple[np.ndarray, str]:
    """A clip with its caption, of the known `ground`; None for the new one."""
    drawn = scene(random)
    while ground is not None and drawn.ground != ground:
        drawn = scene(random)
    new = ground is None
    frames = clips.clip(drawn, height=SIZE, width=SIZE, num_frames=num_frames, fade=MOSS if new else None)
    return frames, scenes.sentence(drawn, random, place=PLACE if new else None)


def write(folder: Path, seed: int) -> None:
    """The data set as files, NAME.png and NAME.txt: of each clip one picture, since a ground is in all of them."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(NEW_CLIPS + KNOWN_CLIPS):
        known = scenes.GROUNDS[number % len(scenes.GROUNDS)]
        frames, text = example(random, None if number < NEW_CLIPS else known)
        name = f"{number:02d}"
        Image.fromarray(frames[int(random.integers(len(frames)))]).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
