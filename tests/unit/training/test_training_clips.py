"""The drawn clips, their captions, and the judge that reads them back from pixels."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training import clips, scenes
from training.judging import Verdict, camera, judge
from training.latents import drawn as drawn_for_training
from training.scenes import Scene
from worker.request.prompt_words import CAMERA_MOTIONS

ROOT = Path(__file__).resolve().parents[3]
BALL = Scene("red", "ball", "gradient", "left", "plain", "none", layout=7)


def drawn(scene: Scene, side: int = 64) -> np.ndarray:
    return clips.clip(scene, height=side, width=side)


def test_a_scene_gives_the_same_frames_again() -> None:
    frames = drawn(BALL)
    assert frames.shape == (17, 64, 64, 3)
    assert frames.dtype == np.uint8
    assert np.array_equal(frames, drawn(BALL))
    assert not np.array_equal(frames, drawn(replace(BALL, layout=8)))


@pytest.mark.parametrize("motion", scenes.STRAIGHT)
def test_a_slow_scene_crosses_the_frame_in_four_clips_that_join(motion: str) -> None:
    slow = replace(BALL, motion=motion, slow=True)
    parts = [clips.clip(slow, height=64, width=64, first=first) for first in (0, 16, 32, 48)]
    for before, after in pairwise(parts):
        assert np.abs(before[-1].astype(int) - after[0]).max() <= 1
    whole = np.concatenate([parts[0], *(part[1:] for part in parts[1:])])
    assert judge(whole) == Verdict("red", motion, "ball")
    assert [judge(part, far=0.1).motion for part in parts] == [motion] * 4
    assert judge(parts[0]).motion is None


def test_what_is_slow_says_so_and_all_else_keeps_its_words() -> None:
    slow = replace(BALL, slow=True)
    for seed in range(20):
        words = scenes.sentence(slow, np.random.default_rng(seed))
        assert "slowly" in words or "gently" in words
        assert not any(word in scenes.sentence(BALL, np.random.default_rng(seed)) for word in ("slowly", "gently"))


def test_the_clips_of_a_training_set_come_by_their_numbers() -> None:
    made = [drawn_for_training(5, 32, number) for number in range(40)]
    assert np.array_equal(made[7].latents, drawn_for_training(5, 32, 7).latents)
    slow = [any(word in told.lower() for word in ("slowly", "gently")) for told in (each.captions[0] for each in made)]
    assert any(slow)
    assert not all(slow)
    assert not all(each.opening for each in made)
    assert all(each.opening or is_slow for each, is_slow in zip(made, slow, strict=True))


def test_training_draws_no_held_out_combination() -> None:
    random = np.random.default_rng(1)
    trained = [scenes.draw(random, held_out=False) for _ in range(2000)]
    kept_out = [scenes.draw(random, held_out=True) for _ in range(200)]
    assert not any(scene.held_out for scene in trained)
    assert all(scene.held_out for scene in kept_out)
    combined = {(scene.colour, scene.shape, scene.ground, scene.motion) for scene in trained}
    assert combined.isdisjoint((scene.colour, scene.shape, scene.ground, scene.motion) for scene in kept_out)


def test_every_factor_is_drawn_in_training_and_in_what_is_held_out() -> None:
    random = np.random.default_rng(2)
    for held_out in (False, True):
        many = [scenes.draw(random, held_out=held_out) for _ in range(1500)]
        for name, ways in scenes.FACTORS.items():
            assert Counter(getattr(scene, name) for scene in many).keys() == set(ways), name


def test_captions_are_prompts_as_the_worker_sends_them() -> None:
    random = np.random.default_rng(3)
    told = [(scene := scenes.draw(random, held_out=False), scenes.caption(scene, random)) for _ in range(300)]
    for scene, caption in told:
        if scene.camera != "none":
            assert CAMERA_MOTIONS[scene.camera].lower() in caption.lower()
    assert any("35mm lens" in caption for _, caption in told)


@pytest.mark.slow  # test_the_judge_sees_the_motion_under_a_moving_camera
@pytest.mark.parametrize("light", scenes.LIGHTS)
def test_the_judge_reads_every_colour_and_motion_back(light: str) -> None:
    for number, colour in enumerate(scenes.COLOURS):
        for motion in scenes.MOTIONS:
            ground, shape = scenes.GROUNDS[number % 4], scenes.SHAPES[number % 3]
            scene = Scene(colour, shape, ground, motion, light, "none", layout=number)
            seen = judge(drawn(scene))
            assert (seen.colour, seen.motion) == (colour, motion), scene
            # In evening light the shaded side of what is white is as dull as a ground: its silhouette lacks a part.
            assert seen.shape == shape or (colour, light) == ("white", "golden"), scene


@pytest.mark.parametrize("camera", list(CAMERA_MOTIONS))
def test_the_judge_sees_the_motion_under_a_moving_camera(camera: str) -> None:
    for motion in ("left", "right", "up", "down"):
        scene = Scene("green", "box", "checkerboard", motion, "plain", camera, layout=5)
        assert judge(drawn(scene)) == Verdict("green", motion, "box")


@pytest.mark.parametrize("name", ["pan_left", "pan_right", "pan_up", "pan_down", "zoom_in", "zoom_out", "static"])
@pytest.mark.parametrize("motion", ["left", "down", "round"])
def test_the_judge_tells_the_cameras_move_from_the_ground(name: str, motion: str) -> None:
    assert camera(drawn(replace(BALL, ground="checkerboard", motion=motion, camera=name))) == name


def test_no_move_of_the_camera_is_made_up_for_half_a_pan() -> None:
    frames = drawn(replace(BALL, ground="checkerboard", camera="pan_left"))
    assert camera(np.concatenate([frames[:6], frames[5:6].repeat(11, 0)])) is None


@pytest.mark.parametrize("ground", scenes.GROUNDS)
def test_the_judge_sees_nothing_where_there_is_no_object(ground: str) -> None:
    """A frame from which the object has gone, held for a whole clip: no colour, no motion."""
    scene = replace(BALL, ground=ground)
    frames = drawn(scene)
    # The ball moves left: the right half of the last frame, mirrored, is ground alone.
    half = frames[-1, :, 32:]
    empty = np.concatenate([half[:, ::-1], half], 1)
    assert judge(np.stack([empty] * 17)) == Verdict(None, None)


def test_a_still_object_has_a_colour_and_no_motion() -> None:
    still = np.stack([drawn(BALL)[8]] * 17)
    assert judge(still) == Verdict("red", None, "ball")


def test_a_camera_that_zooms_in_makes_the_object_larger() -> None:
    def sizes(move: str) -> tuple[int, int]:
        frames = drawn(replace(BALL, camera=move, motion="round"))
        seen = [int(((frame[..., 0] > 150) & (frame[..., 1] < 80)).sum()) for frame in frames]
        return seen[0], seen[-1]

    for move, grows in (("zoom_in", True), ("dolly_in", True), ("zoom_out", False), ("dolly_out", False)):
        first, last = sizes(move)
        assert (last > 1.3 * first) is grows
        assert (first > 1.3 * last) is not grows


def test_the_picture_of_test_input_is_a_drawn_one() -> None:
    """The first frame of a scene that its prompt tells, in 32 colours."""
    (_, request) = json.loads((ROOT / "test_input.json").read_text(encoding="utf-8"))["input"]["job_request_params"]
    picture = base64.b64decode(request["reference_image_url"].removeprefix("data:image/png;base64,"))
    sent = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    scene = Scene("yellow", "ball", "gradient", "right", "plain", "none", layout=5)
    assert np.abs(sent - drawn(scene, side=128)[0]).mean() < 3
    assert request["prompt"] == "A yellow ball moves right in front of a grey gradient"
