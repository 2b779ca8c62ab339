"""The caller's words stay as they are: joining, other scripts, lengths, and composing twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from worker.request.prompt import compose
from worker.request.prompt_words import CAMERA_MOTIONS

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("A cat", "A cat, camera zooms in"),
        ("  A cat \n", "A cat, camera zooms in"),
        ("A cat.", "A cat. Camera zooms in."),
        ("A cat!", "A cat! Camera zooms in."),
        ("A cat...", "A cat... Camera zooms in."),
        ("A cat,", "A cat, camera zooms in"),
        ("A cat;", "A cat; camera zooms in"),
        ("A cat -", "A cat - camera zooms in"),
        ('A sign says "open"', 'A sign says "open", camera zooms in'),
        ('She says "run!"', 'She says "run!" Camera zooms in.'),
        ("She says “run.”", "She says “run.” Camera zooms in."),
        ("(A cat.)", "(A cat.) Camera zooms in."),
        ("猫。", "猫。 Camera zooms in."),
        ("猫，", "猫， camera zooms in"),
        ("猫", "猫, camera zooms in"),
        ("", "camera zooms in"),
        ("   ", "camera zooms in"),
    ],
)
def test_punctuation_joins(prompt: str, expected: str):
    result = compose(prompt, camera_motion="zoom_in", enhance=False)
    assert result == expected
    assert compose(result, camera_motion="zoom_in", enhance=False) == expected


VOCABULARY = """a the cat knight night light neon anime camera pans left right zoom in out static shot close-up 35mm
    film noir sunset rain underwater product white background slow motion. walks, and! 猫 la playa que über — - _ '
    " ( ) color grade drone VHS style orbit crane up dolly handheld fixed"""

PIECES = st.sampled_from([*VOCABULARY.split(), "\n", ""])
PROMPTS = st.text(max_size=200) | st.lists(PIECES, max_size=70).map(" ".join)
MOTION_OR_NONE = st.sampled_from([None, *CAMERA_MOTIONS])


@settings(max_examples=200)
@given(prompt=PROMPTS, camera_motion=MOTION_OR_NONE, enhance=st.booleans())
@example(prompt="there will be no -", camera_motion="handheld", enhance=False)
@example(prompt="\ud800 the lone surrogate", camera_motion="pan_left", enhance=True)
@example(prompt="ſtatic ſhot of the ſea", camera_motion="static", enhance=True)
def test_words_are_kept_and_composing_again_changes_nothing(prompt: str, camera_motion: str | None, enhance: bool):
    result = compose(prompt, camera_motion=camera_motion, enhance=enhance)
    assert prompt.strip() in result
    assert compose(prompt, camera_motion=camera_motion, enhance=enhance) == result
    assert compose(result, camera_motion=camera_motion, enhance=enhance) == result


@given(prompt=PROMPTS)
@example(prompt="  A cat \n")
def test_without_enhancement_or_motion_the_prompt_is_untouched(prompt: str):
    assert compose(prompt, camera_motion=None, enhance=False) == prompt


@given(
    prompt=st.text(alphabet=st.characters(min_codepoint=0x0400, max_codepoint=0xD7FF), max_size=120),
    name=MOTION_OR_NONE,
)
def test_prompts_in_other_scripts_get_at_most_the_camera_phrase(prompt: str, name: str | None):
    assert compose(prompt, camera_motion=name, enhance=True) == compose(prompt, camera_motion=name, enhance=False)


@pytest.mark.parametrize("piece", ["camera ", "\n", ".ly ", "pan left to ", "lyly", "- ", "camera slowly "])
def test_the_longest_prompt_of_the_contract_is_composed_whatever_it_repeats(piece: str):
    prompt = "the dog " + piece * (4000 // len(piece))
    for name in CAMERA_MOTIONS:
        assert prompt.strip() in compose(prompt, camera_motion=name, enhance=True)


def test_results_do_not_depend_on_the_process():
    script = (
        "import sys; from worker.request.prompt import compose; "
        "print(compose('A cat sleeps on a sofa', camera_motion='pan_left', enhance=True)); "
        "sys.exit(3 if 'torch' in sys.modules else 0)"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {compose("A cat sleeps on a sofa", camera_motion="pan_left", enhance=True) + "\n"}


def test_where_other_letters_outweigh_nothing_is_added() -> None:
    """Up to 15% of the letters may be of another script."""
    english = "the cat and the dog of the house"  # 25 letters
    letters = sum(letter.isalpha() for letter in english)
    for others in range(1, 9):
        prompt = f"{english} {'猫' * others}"
        added = compose(prompt, camera_motion=None, enhance=True) != prompt
        assert added is (others <= 0.15 * (letters + others)), others


def test_english_words_must_outnumber_foreign_ones() -> None:
    for english, foreign, added in ((2, 1, True), (2, 2, False), (1, 2, False)):
        prompt = " ".join(["the"] * english + ["der"] * foreign)
        assert (compose(prompt, camera_motion=None, enhance=True) != prompt) is added, prompt


def test_a_prompt_of_300_tokens_is_enhanced_and_a_longer_one_is_not() -> None:
    fits = "the " + "a" * 896  # 900 bytes
    assert compose(fits, camera_motion=None, enhance=True) != fits
    assert compose(f"{fits}a", camera_motion=None, enhance=True) == f"{fits}a"
