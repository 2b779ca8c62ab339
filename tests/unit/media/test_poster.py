"""What counts as sharp, and which frame the poster of a video is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.kits.frames import Alive, encoded, gradients, moving
from worker.media.ffmpeg import QUEUE_FRAMES
from worker.media.poster import POSTER_WINDOW_FRAMES, PosterPicker, sharpness

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
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


def _texture(contrast: float, *, level: int = 128, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """Squares about a grey level; their sharpness grows with the square of the contrast (0 to 1)."""
    width, height = size
    squares = np.random.default_rng(3).uniform(-100, 100, (height // 8, width // 8, 1))
    return np.clip(level + contrast * squares.repeat(8, 0).repeat(8, 1).repeat(3, 2), 0, 255).astype(np.uint8)


def _marked(contrasts: list[float], *, level: int = 128) -> list[np.ndarray]:
    """Textures that can be told apart by a colour of their own in the red channel."""
    frames = []
    for index, contrast in enumerate(contrasts):
        frame = _texture(contrast, level=level)
        frame[:12, :12] = (10 * index, 128, 128)
        frames.append(frame)
    return frames


def _poster_index(frames: list[np.ndarray], out: Path) -> int:
    video = encoded(frames, out / "0.mp4", num_frames=len(frames), poster=out / "0.jpg")
    assert video.poster == out / "0.jpg"
    with Image.open(video.poster) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 48))
        red = np.asarray(image)[2:10, 2:10, 0].mean()
    return round(red / 10)


@pytest.mark.parametrize(
    ("contrasts", "chosen"),
    [
        ([0.9, 0.9, 0.9], 0),
        ([0.1, 0.2, 0.9, 0.9], 2),
        ([0.1, 0.9**0.5 * 0.9, 0.9], 1),
        ([0.1, 0.7**0.5 * 0.9, 0.9], 2),
        ([0.1, 0.9, 0.5, 0.2], 1),
        ([0.2] * (POSTER_WINDOW_FRAMES - 1) + [0.9], POSTER_WINDOW_FRAMES - 1),
        ([0.2] * POSTER_WINDOW_FRAMES + [0.9], 0),
        ([0.0] * 5, 0),
        ([0.5], 0),
    ],
)
def test_poster_is_the_first_sharp_frame(out: Path, contrasts: list[float], chosen: int) -> None:
    assert _poster_index(_marked(contrasts), out) == chosen


def test_near_black_frames_are_passed_over(out: Path) -> None:
    frames = _marked([0.9, 0.9, 0.9])
    for dark in frames[:2]:
        dark //= 16
    frames[2] = np.full_like(frames[2], 20)
    assert _poster_index(frames, out) == 2


def test_an_all_black_video_has_a_black_poster(out: Path) -> None:
    assert _poster_index([np.zeros((48, 64, 3), np.uint8)] * 5, out) == 0


def test_no_poster_unless_asked_for(out: Path) -> None:
    video = encoded(gradients(5), out / "0.mp4")
    assert video.poster is None
    assert list(out.iterdir()) == [video.path]


def test_the_poster_keeps_a_bounded_number_of_frames(out: Path) -> None:
    alive = Alive(lambda index: _texture(0.5 + min(index, 40) / 80, size=(256, 256)))
    encoded(alive.frames(80), out / "0.mp4", width=256, height=256, num_frames=80, poster=out / "0.jpg")
    assert alive.most <= QUEUE_FRAMES + 3 + POSTER_WINDOW_FRAMES
