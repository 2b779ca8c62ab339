"""A camera motion becomes one phrase, and none where the words ask for that very move."""

from __future__ import annotations

import pytest

from worker.request.prompt import compose
from worker.request.prompt_words import CAMERA_MOTIONS


def test_the_fourteen_names_of_the_contract():
    names = """pan_left pan_right pan_up pan_down zoom_in zoom_out dolly_in dolly_out
        orbit_left orbit_right crane_up crane_down static handheld"""
    assert sorted(names.split()) == sorted(CAMERA_MOTIONS)
    assert len(set(CAMERA_MOTIONS.values())) == 14


@pytest.mark.parametrize(
    "prompt",
    [
        "A cat sleeps on a sofa",
        "Una mujer camina por la playa",
        "一只猫在跑",
        "A man in the rain, dramatic side light, 35mm lens, film grain",
        " ".join(["the dog walks"] * 30),
    ],
    ids=["plain", "spanish", "chinese", "structured", "long"],
)
def test_every_motion_is_added_once_to_every_kind_of_prompt(prompt: str):
    for camera_motion, phrase in CAMERA_MOTIONS.items():
        assert compose(prompt, camera_motion=camera_motion, enhance=False) == f"{prompt}, {phrase}"
        enhanced = compose(prompt, camera_motion=camera_motion, enhance=True)
        assert enhanced.startswith(f"{prompt}, {phrase}")
        assert [each for each in CAMERA_MOTIONS.values() for _ in range(enhanced.count(each))] == [phrase]


def test_a_non_english_prompt_gets_the_camera_phrase_alone():
    assert compose("猫が走る", camera_motion="zoom_in", enhance=True) == "猫が走る, camera zooms in"


@pytest.mark.parametrize(
    ("camera_motion", "prompt"),
    [
        ("pan_left", "A harbour at noon, the camera slowly pans left"),
        ("pan_left", "The camera pans from right to left across the hall"),
        ("pan_left", "Pan left across the valley"),
        ("pan_left", "A smooth pan to the left over the table"),
        ("pan_left", "A harbour, panned view. Camera pan left."),
        ("pan_right", "Camera pans left to right over the crowd"),
        ("pan_right", "the camera is panning right"),
        ("pan_up", "The camera tilts up to the tower"),
        ("pan_up", "tilt up, an old tower"),
        ("pan_down", "The camera then tilts slowly downwards"),
        ("zoom_in", "A face in a crowd, slow zoom-in"),
        ("zoom_in", "the camera begins to zoom in on the ring"),
        ("zoom_out", "Zoom out from the eye"),
        ("dolly_in", "The camera pushes in on her face"),
        ("dolly_in", "A hall, slow dolly in"),
        ("dolly_in", "Slow push-in on a compass"),
        ("dolly_out", "The camera pulls back from the window"),
        ("dolly_out", "dolly out from a house"),
        ("orbit_left", "the camera orbits left around the statue"),
        ("orbit_left", "The camera circles around her to the left"),
        ("orbit_right", "Camera orbits around the subject to the right"),
        ("crane_up", "The camera cranes up over the roofs"),
        ("crane_up", "Over the city the camera slowly rises"),
        ("crane_down", "the camera descends to the street"),
        ("static", "Static shot of a lake"),
        ("static", "A lake, locked-off camera"),
        ("static", "A lake, the camera remains still"),
        ("static", "A lake, no camera movement"),
        ("handheld", "Handheld camera follows a runner"),
        ("handheld", "A runner, shot hand-held"),
    ],
)
def test_a_move_that_the_words_ask_for_is_not_said_twice(camera_motion: str, prompt: str):
    assert compose(prompt, camera_motion=camera_motion, enhance=False) == prompt


@pytest.mark.parametrize(
    ("camera_motion", "prompt"),
    [
        ("pan_left", "A frying pan left on the stove"),
        ("pan_left", "Dirty pans left in the sink"),
        ("pan_left", "pan left on the fire"),
        ("pan_left", "The camera pans right"),
        ("pan_left", "Camera pans left to right over the crowd"),
        ("pan_right", "The camera pans from right to left"),
        ("pan_right", "The Spanish right winger scores"),
        ("pan_up", "A girl tilts up her chin"),
        ("zoom_in", "The camera zooms out"),
        ("zoom_in", "The camera does not zoom in"),
        ("zoom_in", "no zoom in, no cuts"),
        ("zoom_in", "A face, no slow zoom in"),
        ("dolly_in", "A girl holds a dolly in her arms"),
        ("dolly_in", "The camera moves in a circle"),
        ("dolly_in", "He pushes in the door"),
        ("dolly_out", "He pulls back the curtain"),
        ("orbit_left", "A satellite in orbit, left of the moon"),
        ("crane_up", "A crane lifts a beam and the sun rises"),
        ("static", "Static electricity lifts her hair"),
        ("static", "not a static shot"),
        ("handheld", "A man with a handheld fan"),
        ("handheld", "A tripod shot, no handheld camera"),
    ],
)
def test_words_that_are_not_that_move_do_not_silence_the_parameter(camera_motion: str, prompt: str):
    result = compose(prompt, camera_motion=camera_motion, enhance=False)
    assert result == f"{prompt}, {CAMERA_MOTIONS[camera_motion]}"


def test_the_parameter_speaks_even_against_the_words():
    prompt = "Handheld camera follows a runner"
    assert compose(prompt, camera_motion="static", enhance=False) == f"{prompt}, static shot, fixed camera"


def test_an_unknown_motion_is_refused():
    with pytest.raises(KeyError):
        compose("A cat", camera_motion="pan_sideways", enhance=False)


@pytest.mark.parametrize(("letter", "bytes_each"), [("x", 1), ("猫", 3)])
def test_a_prompt_that_may_overrun_the_encoder_has_the_camera_phrase_in_front(letter: str, bytes_each: int):
    """450 tokens of three bytes each."""
    fits, overruns = letter * (1350 // bytes_each), letter * (1350 // bytes_each + 1)
    for enhance in (False, True):
        assert compose(fits, camera_motion="pan_left", enhance=enhance) == f"{fits}, camera pans left"
        leading = compose(overruns, camera_motion="pan_left", enhance=enhance)
        assert leading == f"Camera pans left. {overruns}"
        assert compose(leading, camera_motion="pan_left", enhance=enhance) == leading
