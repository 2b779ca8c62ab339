"""Floors under what the trained demo model shows, through the worker's own engine, at a few steps.

The floors lie well under what was measured (docs/demo-model.md): they catch a model that is broken, not one that is a
little worse. `benchmarks.quality` measures.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks.quality import figures
from benchmarks.quality_cases import CASES, Case, Clip, Studio, asked_scenes

_STEPS = 6
_QUICK_STEPS = 3
_PROMPTS = 3
# The least likeness (PSNR) to the exact path, over one clip. So few steps are too few for a balanced cache to skip one.
_COSTS = {
    "bf16": 42,
    "int8": 44,
    "fp8 storage": 35,
    "step cache fast": 24,
    "guidance 1": 25,
    "shift 1": 22,
}


@pytest.fixture(scope="module")
def studio() -> Iterator[Studio]:
    with Studio() as made:
        yield made


@pytest.fixture(scope="module")
def exact(studio: Studio) -> list[Clip]:
    return made(studio, "exact", _PROMPTS)


def case(name: str) -> Case:
    return next(each for each in CASES if each.name == name)


def made(studio: Studio, name: str, prompts: int, steps: int = _STEPS) -> list[Clip]:
    return studio.clips(case(name), asked_scenes(prompts), steps)


@pytest.mark.slow
def test_the_exact_path_shows_what_was_asked(exact: list[Clip]) -> None:
    found = figures(exact, None)
    assert found["colour"] == 1
    assert found["motion"] >= 0.6


@pytest.mark.slow
def test_turbo_shows_what_was_asked_in_four_steps(studio: Studio) -> None:
    found = figures(made(studio, "turbo", _PROMPTS), None)
    assert found["colour"] >= 0.6
    assert found["motion"] >= 0.6
    assert found["shape"] >= 0.6


@pytest.mark.slow
def test_image_to_video_begins_with_the_picture(studio: Studio) -> None:
    found = figures(made(studio, "image", 1, _QUICK_STEPS), None)
    assert found["first_frame_db"] >= 31
    assert found["shape"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", _COSTS)
def test_a_shortcut_stays_near_the_exact_path(name: str, studio: Studio, exact: list[Clip]) -> None:
    assert figures(made(studio, name, 1), exact)["exact_db"] >= _COSTS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["experts swapped", "boundary 0.5"])
def test_each_expert_is_needed_on_its_side(name: str, studio: Studio, exact: list[Clip]) -> None:
    spoilt = figures(made(studio, name, 1), exact)
    assert spoilt["exact_db"] < 24
    assert spoilt["flicker"] > figures(exact[:1], None)["flicker"]


@pytest.mark.slow
def test_the_style_restyles_by_its_scale_and_leaves_nothing_behind(studio: Studio, exact: list[Clip]) -> None:
    whole, half = (figures(made(studio, name, 1), exact) for name in ("style", "style at 0.3"))
    assert whole["sepia_db"] > half["sepia_db"] > figures(exact[:1], None)["sepia_db"] + 1
    assert whole["sepia_db"] > half["sepia_db"] + 1
    assert np.array_equal(made(studio, "style taken off", 1)[0].frames, exact[0].frames)
