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

_STEPS = 8
_PROMPTS = 5


@pytest.fixture(scope="module")
def studio() -> Iterator[Studio]:
    with Studio() as made:
        yield made


@pytest.fixture(scope="module")
def exact(studio: Studio) -> list[Clip]:
    return made(studio, "exact")


def case(name: str) -> Case:
    return next(each for each in CASES if each.name == name)


def made(studio: Studio, name: str, prompts: int = _PROMPTS) -> list[Clip]:
    return studio.clips(case(name), asked_scenes(prompts), _STEPS)


def test_the_exact_path_shows_what_was_asked(exact: list[Clip]) -> None:
    found = figures(exact, None)
    assert found["colour"] >= 0.8
    assert found["motion"] >= 0.6


def test_swapped_experts_spoil_the_motion(studio: Studio, exact: list[Clip]) -> None:
    spoilt = figures(made(studio, "experts swapped", 4), exact)
    assert spoilt["motion"] <= 0.5
    assert spoilt["exact_db"] < 24


def test_bf16_changes_next_to_nothing(studio: Studio, exact: list[Clip]) -> None:
    assert figures(made(studio, "bf16", 1), exact)["exact_db"] > 38


def test_image_to_video_begins_with_the_picture(studio: Studio) -> None:
    assert figures(made(studio, "image", 2), None)["first_frame_db"] >= 26


def test_a_run_after_others_is_the_same_bit_for_bit(studio: Studio, exact: list[Clip]) -> None:
    assert np.array_equal(made(studio, "exact", 1)[0].frames, exact[0].frames)
