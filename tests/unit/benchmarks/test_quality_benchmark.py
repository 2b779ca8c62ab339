"""How `benchmarks.quality` counts and shows: on drawn clips, of which every answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.quality import figures, flicker, psnr_db, sepia_db, sheet
from benchmarks.quality_cases import MOVES, Clip, asked_scenes, drawn


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return drawn(asked_scenes(4))


def mistold(clip: Clip) -> Clip:
    """The same frames for a scene of another colour, motion and shape."""
    other = {"colour": "purple", "motion": "round", "shape": "ball"}
    assert all(getattr(clip.scene, name) != value for name, value in other.items())
    return replace(clip, scene=replace(clip.scene, **other))


@pytest.mark.slow  # test_training_clips has the judge
def test_what_shows_the_scene_is_right_and_what_does_not_is_wrong(clips: list[Clip]) -> None:
    found = figures([*clips[2:], mistold(clips[2]), mistold(clips[3])], None)
    assert [found[name] for name in ("clips", "colour", "motion", "shape")] == [4, 0.5, 0.5, 0.5]


def test_scenes_are_held_out_and_the_same_for_every_run() -> None:
    assert asked_scenes(30) == asked_scenes(40)[:30]
    assert all(scene.held_out and scene.camera == "none" for scene in asked_scenes(30))


@pytest.mark.slow  # its runs are by hand
def test_the_cameras_move_is_counted_where_one_was_asked() -> None:
    scenes = asked_scenes(len(MOVES), moves=True)
    assert [scene.camera for scene in scenes] == list(MOVES)
    moving = drawn(scenes, 64)
    assert figures(moving, None)["camera"] == 1
    turned = [replace(clip, frames=clip.frames[::-1]) for clip in moving]
    assert figures(turned, None)["camera"] == pytest.approx(
        1 / len(MOVES)
    )  # only what stands still is the same backwards


@pytest.mark.slow  # its runs are by hand
def test_the_first_frame_is_held_to_the_picture(clips: list[Clip]) -> None:
    given = replace(clips[0], picture=clips[0].frames[0])
    off = replace(clips[0], picture=np.clip(clips[0].frames[0].astype(int) + 10, 0, 255).astype(np.uint8))
    assert figures([given], None)["first_frame_db"] == 99
    assert figures([off], None)["first_frame_db"] == pytest.approx(20 * np.log10(255 / 10), abs=0.2)


def test_likeness_and_flicker() -> None:
    black, white = np.zeros((3, 4, 4, 3), np.uint8), np.full((3, 4, 4, 3), 255, np.uint8)
    assert psnr_db(black, black) == 99
    assert psnr_db(black, white) == 0
    assert flicker(np.stack([black[0], white[0], black[0]])) == 510
    assert flicker(white) == 0
    sepia = np.broadcast_to(np.array([200, 164, 116], np.uint8), (3, 4, 4, 3))
    assert sepia_db(sepia) > 45 > 25 > sepia_db(white)


def test_a_sheet_names_in_red_what_is_wrong(clips: list[Clip], tmp_path: Path) -> None:
    def reds(shown: list[Clip]) -> int:
        sheet(shown, tmp_path / "sheet.png")
        cell = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
        label = cell[-18:]
        return int(((label[..., 0] > 200) & (label[..., 1:].max(-1) < 60)).sum())

    assert reds([clips[0]]) == 0
    assert reds([mistold(clips[2])]) > 20
