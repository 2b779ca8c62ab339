"""What counts as sharp, and whose frame the poster is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.unit.media.test_formats import moving
from worker.media.poster import PosterPicker, sharpness

Luma = np.ndarray


def _scene(name: str) -> Luma:
    """A picture of luma, float32 [240, 320]."""
    random = np.random.default_rng(4)
    if name == "blocks":
        return random.uniform(20, 230, (12, 16)).repeat(20, 0).repeat(20, 1).astype(np.float32)
    if name == "moving square":
        return np.asarray(Image.fromarray(next(moving(1))).convert("L").resize((320, 240)), np.float32)
    rows, columns = np.mgrid[0:240, 0:320]
    return (128 + 60 * np.sign(np.sin(rows / 9) * np.sin(columns / 13)) + rows / 8).astype(np.float32)


def _noisy(luma: Luma, deviation: float) -> Luma:
    grain = np.random.default_rng(1).normal(0, deviation, luma.shape)
    return np.clip(luma + grain, 0, 255).astype(np.uint8).astype(np.float32)


def _blurred(luma: Luma, radius: float) -> Luma:
    return np.asarray(Image.fromarray(luma.astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius)), np.float32)


@pytest.mark.parametrize("scene", ["blocks", "moving square", "checks"])
def test_a_clean_picture_is_sharper_than_a_noisy_or_a_blurred_one(scene: str) -> None:
    clean = _scene(scene)
    by_noise = [sharpness(_noisy(clean, deviation)) for deviation in (2, 5, 10, 20)]
    by_blur = [sharpness(_blurred(clean, radius)) for radius in (0.7, 1.5, 3)]
    assert sharpness(clean) > max(by_noise)
    assert by_noise == sorted(by_noise, reverse=True)
    assert sharpness(clean) > by_blur[0]
    assert by_blur == sorted(by_blur, reverse=True)


def test_grain_alone_is_not_sharp() -> None:
    assert sharpness(_noisy(np.full((240, 320), 128, np.float32), 20)) == 0
    assert sharpness(np.full((2, 2), 128, np.float32)) == 0


def _chosen(frames: list[np.ndarray], folder: Path, *, first: bool = False) -> int:
    """Which of the frames the poster shows."""
    picker = PosterPicker(folder / "0.jpg", first=first)
    for frame in frames:
        picker.look(frame)
    picker.save()
    with Image.open(folder / "0.jpg") as image:
        shown = np.asarray(image).astype(float)
    return int(np.argmin([np.abs(shown - frame).mean() for frame in frames]))


def test_noise_that_settles_is_not_the_poster(tmp_path: Path) -> None:
    clean = _scene("blocks")
    frames = [_noisy(clean, 30), _blurred(clean, 3), _noisy(clean, 20), clean, clean - 10]
    coloured = [np.repeat(frame.clip(0, 255).astype(np.uint8)[..., None], 3, 2) for frame in frames]
    assert _chosen(coloured, tmp_path) == 3


def test_the_first_frame_is_taken_where_it_is_asked_for(tmp_path: Path) -> None:
    frames = [np.zeros((96, 160, 3), np.uint8), *moving(3)]
    assert _chosen(frames, tmp_path, first=True) == 0
    assert _chosen(frames, tmp_path) > 0
