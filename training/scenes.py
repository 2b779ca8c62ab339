"""What a clip can show, and the words for it: the factors, their synonyms and the combinations kept out of training.

A scene is one shape in one colour over one ground, in one motion, under one light, seen by one camera. What is slow
crosses the frame in four clips instead of one. Its caption is a
plain English sentence; the camera's phrase and the words of prompt enhancement come from the worker's own
`worker.request.prompt`, so that the model learns prompts as the worker sends them.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from worker.request.prompt import compose
from worker.request.prompt_words import CAMERA_MOTIONS

# Each colour as RGB in 0 to 1. The grounds are duller than all of them, which is what the pixel classifier rests on.
COLOURS: Mapping[str, tuple[float, float, float]] = {
    "red": (0.90, 0.08, 0.10),
    "orange": (1.00, 0.47, 0.02),
    "yellow": (1.00, 0.88, 0.08),
    "green": (0.10, 0.75, 0.18),
    "blue": (0.10, 0.30, 0.95),
    "purple": (0.52, 0.12, 0.85),
    "pink": (1.00, 0.35, 0.70),
    "white": (0.97, 0.97, 0.97),
}
SHAPES = ("ball", "box", "star")
GROUNDS = ("gradient", "water", "night", "checkerboard")
MOTIONS = ("left", "right", "up", "down", "round", "bounce")
LIGHTS = ("plain", "noon", "golden", "neon")
CAMERAS = ("none", *CAMERA_MOTIONS)

FACTORS: Mapping[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "ground": GROUNDS,
    "motion": MOTIONS,
    "light": LIGHTS,
    "camera": CAMERAS,
}

_COLOUR_WORDS = {
    "red": ("red", "red", "crimson", "scarlet"),
    "orange": ("orange", "orange", "tangerine"),
    "yellow": ("yellow", "yellow", "lemon yellow"),
    "green": ("green", "green", "emerald"),
    "blue": ("blue", "blue", "cobalt"),
    "purple": ("purple", "purple", "violet"),
    "pink": ("pink", "pink", "rose pink"),
    "white": ("white", "white", "snow white"),
}
_SHAPE_WORDS = {
    "ball": ("ball", "ball", "sphere", "round ball"),
    "box": ("box", "box", "cube", "block"),
    "star": ("star", "star", "five pointed star"),
}
_MOTION_WORDS = {
    "left": ("moves left", "drifts to the left", "slides left", "glides from right to left", "flies to the left"),
    "right": ("moves right", "drifts to the right", "slides right", "glides from left to right", "flies to the right"),
    "up": ("moves up", "rises", "floats upwards", "climbs up", "flies up"),
    "down": ("moves down", "sinks", "floats downwards", "falls down", "drops down"),
    "round": ("circles around", "goes round in a circle", "moves in a circle", "turns round and round"),
    "bounce": ("bounces", "bounces up and down", "is bouncing", "hops up and down"),
}
_SLOW_WORDS = ("slowly", "slowly", "very slowly", "gently")
_GROUND_WORDS = {
    "gradient": ("over a smooth gradient", "in front of a grey gradient", "against a plain backdrop"),
    "water": ("over rippling water", "above a calm lake", "over the water", "over the waves of the sea"),
    "night": ("in the night sky", "in a starry night sky", "at night under the stars"),
    "checkerboard": ("over a checkerboard", "on a checkered floor", "above a chess board"),
}
_LIGHT_WORDS = {
    "noon": ("at noon", "in bright midday light"),
    "golden": ("at golden hour", "in warm evening light"),
    "neon": ("in neon light", "lit by neon signs"),
}
STRAIGHT = ("left", "right", "up", "down")
_QUIET = ("gradient", "night")
_SIZES = ("", "", "", "small ", "big ", "shiny ")
_HELD_OUT_PERCENT = 10


@dataclass(frozen=True, slots=True)
class Scene:
    """One clip's content; `layout` seeds what no word names: start, phase, where the stars stand."""

    colour: str
    shape: str
    ground: str
    motion: str
    light: str
    camera: str
    layout: int
    slow: bool = False

    @property
    def held_out(self) -> bool:
        """Whether this combination is never trained on: a tenth of all, by a checksum that no seed changes."""
        key = f"{self.colour} {self.shape} {self.ground} {self.motion}"
        return zlib.crc32(key.encode()) % 100 < _HELD_OUT_PERCENT


def draw(random: np.random.Generator, *, held_out: bool, camera: float = 0.3, simple: bool = False) -> Scene:
    """A random scene of the training set or of the held-out one.

    camera: how often the camera moves. `simple` scenes have a still camera, plain light, a quiet ground and a
    straight motion: little differs from clip to clip but what the caption says.
    """
    while True:
        moved = camera > 0 and not simple and random.random() < camera
        scene = Scene(
            colour=_pick(random, tuple(COLOURS)),
            shape=_pick(random, SHAPES),
            ground=_pick(random, _QUIET if simple else GROUNDS),
            motion=_pick(random, STRAIGHT if simple else MOTIONS),
            light=_pick(random, LIGHTS) if not simple and random.random() < 0.5 else "plain",
            camera=_pick(random, tuple(CAMERA_MOTIONS)) if moved else "none",
            layout=int(random.integers(2**31)),
        )
        if scene.held_out is held_out:
            return scene


def paced(scene: Scene, random: np.random.Generator, *, share: float) -> Scene:
    """The scene, slow in a `share` of the cases where its motion is straight and its camera stands."""
    may_be = scene.motion in STRAIGHT and scene.camera == "none"
    return replace(scene, slow=may_be and bool(random.random() < share))


def sentence(scene: Scene, random: np.random.Generator, *, place: str | None = None) -> str:
    """A caller's words for the scene, without the camera. `place`, such as "over moss", replaces its ground's words."""
    motion, ground = _pick(random, _MOTION_WORDS[scene.motion]), _pick(random, _GROUND_WORDS[scene.ground])
    ground = ground if place is None else place
    if scene.slow:
        slowly = _pick(random, _SLOW_WORDS)
        motion = f"{slowly} {motion}" if random.random() < 0.5 else f"{motion} {slowly}"
    article = _pick(random, ("A", "A", "The", "a", "one"))
    adjectives = f"{_pick(random, _SIZES)}{_pick(random, _COLOUR_WORDS[scene.colour])}"
    subject = f"{article} {adjectives} {_pick(random, _SHAPE_WORDS[scene.shape])}"
    if article.lower() == "a" and adjectives[0] in "aeiou":
        subject = f"{article}n{subject[len(article) :]}"
    words = f"{subject} {motion} {ground}"
    if random.random() < 0.15:
        words = f"{ground.capitalize()}, {subject[0].lower()}{subject[1:]} {motion}"
    if scene.light != "plain":
        words += f"{_pick(random, (' ', ', '))}{_pick(random, _LIGHT_WORDS[scene.light])}"
    return f"{words}{_pick(random, ('', '', '.'))}"


def caption(scene: Scene, random: np.random.Generator) -> str:
    """The prompt as the worker would send it: the sentence, the camera's phrase, often the words of enhancement."""
    camera = None if scene.camera == "none" else scene.camera
    return compose(sentence(scene, random), camera_motion=camera, enhance=bool(random.random() < 0.6))


def words() -> tuple[str, ...]:
    """Every phrase of the grammar, for the tokenizer's vocabulary."""
    tables = (_COLOUR_WORDS, _SHAPE_WORDS, _MOTION_WORDS, _GROUND_WORDS, _LIGHT_WORDS)
    return (*(phrase for table in tables for phrases in table.values() for phrase in phrases), *_SLOW_WORDS)


def _pick(random: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(random.integers(len(choices)))]
