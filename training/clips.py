"""Draws scenes as clips, in numpy alone: the same scene and size give the same frames on every machine.

Everything is placed in units of the frame's shorter side, so a scene looks alike at every size.
"""

from __future__ import annotations

import numpy as np

from training.scenes import COLOURS, Scene

Plane = np.ndarray
# RGB in 0 to 1.
Colour = tuple[float, float, float]

_RADIUS = 0.15
_TRAVEL = 0.27
# A slow scene goes this far in so many clips, and stays within the frame.
_SLOW_TRAVEL, SLOW_CLIPS = 0.34, 4
_LIGHTS = {
    "plain": (1.0, 1.0, 1.0),
    "noon": (1.08, 1.08, 1.06),
    "golden": (1.05, 0.93, 0.78),
    "neon": (0.92, 0.82, 1.05),
}


def clip(
    scene: Scene,
    *,
    height: int,
    width: int,
    num_frames: int = 17,
    first: int = 0,
    fade: tuple[Colour, Colour] | None = None,
) -> np.ndarray:
    """Frames of `scene` from number `first`, uint8 [num_frames, height, width, 3].

    What is slow goes on for `SLOW_CLIPS` clips; only of such a scene should `first` be other than 0. `fade` replaces
    the ground: from above to below.
    """
    random = np.random.default_rng(scene.layout)
    side = min(height, width)
    begins = np.float32(first / max(1, num_frames - 1))
    time = np.linspace(0, 1, num_frames, dtype=np.float32)[:, None, None] + begins
    rows = ((np.arange(height, dtype=np.float32) + 0.5 - height / 2) / side)[None, :, None]
    columns = ((np.arange(width, dtype=np.float32) + 0.5 - width / 2) / side)[None, None, :]
    drift_x, drift_y, ground_scale, object_scale, side_shift = _camera(scene.camera, time, random)
    ground_x = columns / ground_scale - drift_x - side_shift
    ground_y = rows / ground_scale - drift_y
    ground = _ground(scene.ground, ground_x, ground_y, time, random)
    if fade is not None:
        ground = np.broadcast_to(_between(*fade, np.clip(ground_y + 0.5, 0, 1)), ground.shape)
    centre_x, centre_y = _track(scene, time, random)
    object_x = columns / object_scale - drift_x - centre_x
    object_y = rows / object_scale - drift_y - centre_y
    distance = _distance(scene.shape, object_x, object_y)
    cover = np.clip(0.5 - distance * side / 2.0, 0, 1)[..., None]
    body = np.array(COLOURS[scene.colour], dtype=np.float32) * _shading(object_x, object_y)[..., None]
    picture = ground * (1 - cover) + body * cover
    if scene.light == "neon":
        glow = np.exp(-np.clip(distance, 0, None) / 0.05)[..., None] * (1 - cover) * 0.35
        picture = picture * (1 - glow) + np.array(COLOURS[scene.colour], dtype=np.float32) * glow
    picture = picture * np.array(_LIGHTS[scene.light], dtype=np.float32)
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def _camera(name: str, time: Plane, random: np.random.Generator) -> tuple[Plane, Plane, Plane, Plane, Plane]:
    """Shift of all content right and down, scale of the ground and of the object, shift of the ground alone.

    A camera that pans left shows content that moves right, and so on. A dolly changes the near object more than the
    far ground; an orbit slides the ground behind an object that stays.
    """
    still, none = np.ones_like(time), np.zeros_like(time)
    across = 0.20 * (time - 0.5)
    near, far = 0.8 + 0.5 * time, 0.95 + 0.15 * time
    phase = random.uniform(0, 2 * np.pi, 4)
    shake_x = 0.012 * (np.sin(9 * time + phase[0]) + np.sin(17 * time + phase[1]))
    shake_y = 0.012 * (np.sin(11 * time + phase[2]) + np.sin(19 * time + phase[3]))
    known = {
        "pan_left": (across, none, still, still, none),
        "pan_right": (-across, none, still, still, none),
        "pan_up": (none, across, still, still, none),
        "pan_down": (none, -across, still, still, none),
        "zoom_in": (none, none, 0.8 + 0.45 * time, 0.8 + 0.45 * time, none),
        "zoom_out": (none, none, 1.25 - 0.45 * time, 1.25 - 0.45 * time, none),
        "dolly_in": (none, none, far, near, none),
        "dolly_out": (none, none, far[::-1], near[::-1], none),
        "orbit_left": (none, none, still, still, 1.5 * across),
        "orbit_right": (none, none, still, still, -1.5 * across),
        "crane_up": (none, across, 1.1 - 0.2 * time, 1.1 - 0.2 * time, none),
        "crane_down": (none, -across, 0.9 + 0.2 * time, 0.9 + 0.2 * time, none),
        "handheld": (shake_x, shake_y, still, still, none),
    }
    return known.get(name, (none, none, still, still, none))


def _track(scene: Scene, time: Plane, random: np.random.Generator) -> tuple[Plane, Plane]:
    """The object's centre over `time`, right and down from the middle of the frame."""
    aside = random.uniform(-0.16, 0.16)
    travel, lasts = (_SLOW_TRAVEL, SLOW_CLIPS) if scene.slow else (_TRAVEL, 1)
    forth = 2 * travel * random.uniform(0.9, 1.1) * (time / lasts - 0.5)
    motion = scene.motion
    if motion in ("left", "right"):
        return (forth if motion == "right" else -forth), np.full_like(time, aside)
    if motion in ("up", "down"):
        return np.full_like(time, aside), (forth if motion == "down" else -forth)
    if motion == "round":
        angle = 2 * np.pi * time + random.uniform(0, 2 * np.pi)
        return 0.22 * np.cos(angle), 0.22 * np.sin(angle)
    height = np.abs(np.sin(np.pi * (2 * time + 0.5 * random.integers(2))))
    return np.full_like(time, aside), 0.24 - 0.46 * height


def _distance(shape: str, x: Plane, y: Plane) -> Plane:
    """Signed distance to the shape's edge, negative inside, in units of the frame's shorter side."""
    if shape == "ball":
        return np.hypot(x, y) - _RADIUS
    if shape == "box":
        return np.maximum(np.abs(x), np.abs(y)) - _RADIUS * 0.88
    # A five-pointed star: the edge's radius runs straight between tip and notch.
    angle = np.arctan2(x, -y)
    from_tip = np.abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5) / (np.pi / 5)
    radius = np.hypot(x, y)
    outer, inner = _RADIUS * 1.3, _RADIUS * 0.6
    return (radius - (outer * (1 - from_tip) + inner * from_tip)) * 0.75


def _shading(x: Plane, y: Plane) -> Plane:
    """Lit from the upper left: 1 there, 0.72 at the far edge."""
    return np.clip(0.9 - 0.7 * (x + y), 0.72, 1.0)


def _ground(name: str, x: Plane, y: Plane, time: Plane, random: np.random.Generator) -> np.ndarray:
    """RGB in 0 to 1, [frames, height, width, 3]."""
    x, y = np.broadcast_arrays(x, y)
    if name == "gradient":
        return _between((0.62, 0.60, 0.56), (0.24, 0.26, 0.32), np.clip(y + 0.5, 0, 1))
    if name == "water":
        phase = random.uniform(0, 2 * np.pi)
        wave = np.sin(26 * y + 1.2 * np.sin(5 * x + phase) + 2 * np.pi * time + phase)
        return _between((0.13, 0.25, 0.33), (0.30, 0.44, 0.50), 0.5 + 0.5 * wave)
    if name == "checkerboard":
        soft = np.clip(np.sin(np.pi * x / 0.25) * np.sin(np.pi * y / 0.25) * 8, -1, 1)
        return _between((0.20, 0.20, 0.22), (0.52, 0.51, 0.48), 0.5 + 0.5 * soft)
    sky = _between((0.03, 0.04, 0.12), (0.10, 0.09, 0.20), np.clip(y + 0.5, 0, 1))
    for star_x, star_y, light in random.uniform((-0.6, -0.6, 0.35), (0.6, 0.6, 0.7), (14, 3)):
        near = ((x - star_x) ** 2 + (y - star_y) ** 2) / 0.011**2
        sky += (light * np.exp(-near))[..., None]
    return sky


def _between(one: Colour, other: Colour, share: Plane) -> np.ndarray:
    first, second = np.array(one, dtype=np.float32), np.array(other, dtype=np.float32)
    return first + (second - first) * share[..., None].astype(np.float32)
