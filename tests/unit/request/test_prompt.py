from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from worker.request.prompt import LONG_PROMPT_WORDS, compose
from worker.request.prompt_words import CAMERA_MOTIONS

MOTIONS = sorted(CAMERA_MOTIONS)
ROOT = Path(__file__).parents[3]

# Every phrase that enhancement may write, by the slot of the formula that it fills.
SLOTS = {
    "motion": {"lifelike motion", "fluid motion", "subtle motion"},
    "lighting": {
        "soft natural lighting",
        "soft lighting",
        "soft ambient lighting",
        "soft overcast light",
        "soft even studio lighting",
        "low-key lighting",
        "high-contrast lighting",
        "dramatic stage lighting",
        "diffused underwater light",
    },
    "lens": {"35mm lens", "shallow depth of field", "wide shot", "balanced composition", "centered composition"},
    "colour": {"balanced color grade", "harmonious color palette", "neutral color grade"},
    "style": {"cinematic style", "clean commercial style"},
}
PHOTOGRAPHIC = {"35mm lens", "shallow depth of field", "balanced color grade", "cinematic style", "lifelike motion"}
DAYLIGHT = {"soft natural lighting"}
ALL = {"motion", "lighting", "lens", "colour", "style"}


def added(prompt: str, *, camera_motion: str | None = None) -> list[str]:
    """What enhancement wrote after the words, phrase by phrase, in lower case; fails where the words changed."""
    result = compose(prompt, camera_motion=camera_motion, enhance=True)
    words = prompt.strip()
    assert result.startswith(words) or result == prompt
    tail = result.removeprefix(words).strip(" ,.")
    return [part.strip().lower() for part in tail.split(",") if part.strip()]


def slots_of(phrases: list[str]) -> set[str]:
    known = {phrase: slot for slot, members in SLOTS.items() for phrase in members}
    return {known[phrase] for phrase in phrases}


@dataclass(frozen=True)
class Case:
    """`fills`: the very slots that enhancement fills; `has`: phrases it must write; `never`: phrases it must not."""

    prompt: str
    fills: str
    has: frozenset[str] = frozenset()
    never: frozenset[str] = frozenset()


def case(prompt: str, fills: str, *, has: str = "", never: set[str] | None = None) -> Case:
    return Case(prompt, fills, frozenset(part for part in has.split("; ") if part), frozenset(never or ()))


EVERY = "motion lighting lens colour style"
CASES = [
    # Plain prompts: every slot is open.
    case("A cat sleeps on a sofa", EVERY, has="soft natural lighting; 35mm lens; shallow depth of field"),
    case("A young woman walks through a busy market", EVERY, has="lifelike motion; cinematic style"),
    case("golden retriever puppy", EVERY),
    case("An old man reads a book by the window", EVERY),
    case("Two children are playing chess", EVERY),
    case("A waterfall in the jungle and a wooden bridge", EVERY, has="wide shot", never={"35mm lens"}),
    case("A woman stands by the ocean", EVERY, has="35mm lens", never={"wide shot"}),
    # Lighting already said: no second one.
    case("A girl in a field, golden hour", "motion lens colour style", never=DAYLIGHT),
    case("A man walks his dog at sunset", "motion lens colour style", never=DAYLIGHT),
    case("A neon sign in the rain", "motion lens colour style"),
    case("A child reading by candlelight", "motion lens colour style"),
    case("A woman holds two candles", "motion lens colour style"),
    case("A moonlit lake with swans", "motion lens colour style", never=DAYLIGHT),
    case("Portrait of a king, Rembrandt lighting", "motion lens colour style"),
    case("A soldier beside a campfire", "motion lens colour style", never=DAYLIGHT),
    case("A backlit dancer on the beach", "motion lens colour style"),
    case("A storm with lightning over the sea", "motion lens colour style", has="wide shot"),
    case("A volcano with lava running down", "motion lens colour style"),
    # Words that only look like light, night or a move.
    case("A knight rides through the forest", EVERY, has="soft natural lighting", never={"low-key lighting"}),
    case("A nightingale sings on the branch of an old tree", EVERY, has="soft natural lighting"),
    case("The flight of an eagle over the hills", EVERY, has="soft natural lighting"),
    case("A Spanish chef cooks with a frying pan", EVERY),
    case("A woman in a light blue dress smiles", EVERY, has="soft natural lighting"),
    case("A banana split with cream on top of the table", EVERY),
    case("Sunflowers beside the road", EVERY, has="soft natural lighting"),
    case("A boy with dark hair is laughing", EVERY, has="soft natural lighting", never={"low-key lighting"}),
    case("A mushroom grows under the tree", EVERY, has="soft natural lighting", never={"soft ambient lighting"}),
    # Night, horror, neon: no daylight.
    case("A city street at night", EVERY, has="low-key lighting; wide shot", never=DAYLIGHT),
    case("Midnight in the old harbour, boats with black sails", EVERY, has="low-key lighting", never=DAYLIGHT),
    case("A haunted house on the hill", EVERY, has="low-key lighting", never=DAYLIGHT),
    case("The milky way over the mountains", EVERY, has="low-key lighting", never=DAYLIGHT),
    case("A cyberpunk alley with flying cars", "motion lighting lens colour", has="low-key lighting", never=DAYLIGHT),
    # Drawn and animated: nothing photographic.
    case("anime girl running in the rain", "motion lighting lens colour", has="fluid motion", never=PHOTOGRAPHIC),
    case("A cartoon bear eats honey", "motion lighting lens colour", has="soft lighting", never=PHOTOGRAPHIC),
    case("pixel art knight in a castle", "lighting lens colour", never=PHOTOGRAPHIC),
    case("A watercolor painting of the river", "motion lighting lens colour", never=PHOTOGRAPHIC | DAYLIGHT),
    case("claymation fox in the snow", "lighting lens colour", never=PHOTOGRAPHIC),
    case("3D render of a small robot with big eyes", "motion lighting lens colour", never=PHOTOGRAPHIC),
    case("Studio Ghibli meadow with a little girl", "motion lighting lens colour", never=PHOTOGRAPHIC),
    case(
        "A charcoal drawing of an old woman", "motion lighting lens", never=PHOTOGRAPHIC | {"harmonious color palette"}
    ),
    case("A lego city with tiny cars", "lighting lens colour", never=PHOTOGRAPHIC),
    case("a ballerina in the style of Degas, oil on canvas", "motion lighting lens colour", never=PHOTOGRAPHIC),
    case("1girl, solo, masterpiece, best quality", "motion lighting lens colour", never=PHOTOGRAPHIC),
    case("manga-style swordsman in the wind", "motion lighting lens", never=PHOTOGRAPHIC),
    case(
        "Anime city at night with the moon", "motion lighting lens colour", has="low-key lighting", never=PHOTOGRAPHIC
    ),
    # Colour said, or none wanted.
    case("A black and white shot of a man smoking", "motion lighting lens style", never=SLOTS["colour"]),
    case("Film noir detective in the rain", "motion lighting lens", never=SLOTS["colour"] | DAYLIGHT),
    case("Monochrome street with umbrellas", "motion lighting lens style", never=SLOTS["colour"]),
    case("A woman in the desert, teal-and-orange", "motion lighting lens style", never=SLOTS["colour"]),
    case("A dancer with ribbons, kodak portra", "motion lighting lens style", never=SLOTS["colour"]),
    case("Vibrant parrots in the jungle, flying", "motion lighting lens style", never=SLOTS["colour"]),
    # Lens or framing said: no second one.
    case("Close-up of the eyes of a cat", "motion lighting colour style", never=SLOTS["lens"]),
    case("Drone footage over the forest", "motion lighting colour", never=SLOTS["lens"]),
    case("A macro shot of a bee on the flower", "motion lighting colour style", never=SLOTS["lens"]),
    case("A dog on the beach, anamorphic bokeh", "motion lighting colour style", never=SLOTS["lens"]),
    case("Low-angle view of the castle", "motion lighting colour style", never=SLOTS["lens"]),
    case("A man in the street, 85mm", "motion lighting colour style", never=SLOTS["lens"]),
    # Motion, pace or a still camera said: nothing beside it.
    case("static shot of the waterfall", "lighting lens colour style", never=SLOTS["motion"]),
    case("A house by the lake, locked-off tripod shot", "lighting lens colour style", never=SLOTS["motion"]),
    case("Slow-motion water splash in a glass", "lighting lens colour style", never=SLOTS["motion"]),
    case("time-lapse of clouds over the city", "lighting lens colour style", never=SLOTS["motion"]),
    case("A fast car racing through the tunnel", "lighting lens colour style", never=SLOTS["motion"]),
    case("Leaves falling gently from the tree", "lighting lens colour style", never=SLOTS["motion"]),
    case("A stop-motion puppet opens the door", "lighting lens colour", never=SLOTS["motion"] | PHOTOGRAPHIC),
    # Places with a light of their own.
    case("A diver swims underwater with turtles", EVERY, has="diffused underwater light", never=DAYLIGHT),
    case("An astronaut floating in space", EVERY, has="high-contrast lighting", never=DAYLIGHT),
    case("A chef in the kitchen of a restaurant", EVERY, has="soft ambient lighting", never=DAYLIGHT),
    case("A band at a rock concert with the crowd", EVERY, has="dramatic stage lighting", never=DAYLIGHT),
    case("Rainy street with people under umbrellas", EVERY, has="soft overcast light", never=DAYLIGHT),
    # Products.
    case(
        "A perfume bottle on a white background",
        EVERY,
        has="soft even studio lighting; centered composition; clean commercial style; neutral color grade",
        never=DAYLIGHT | PHOTOGRAPHIC,
    ),
    case("Product video of the new headphones, rotating", EVERY, has="subtle motion", never={"cinematic style"}),
    case("A dancer jumps before a black background", EVERY, has="lifelike motion; cinematic style"),
    # Style said.
    case("A documentary about the bees of the garden", "motion lighting lens colour", never=SLOTS["style"]),
    case("A vintage car on the road", "motion lighting lens colour", never=SLOTS["style"]),
    case("A photorealistic whale under the ship", "motion lighting lens colour", never=SLOTS["style"]),
    # Raw footage brings its own look; structured and long prompts are left alone.
    case("VHS home video of the birthday of a child", ""),
    case("CCTV of the parking garage, a man walking", ""),
    case("A man in the rain, dramatic side light, 35mm lens, film grain", ""),
    case("A girl, golden hour, close-up, warm color grade", ""),
    case(
        "A young woman with flowing dark hair walks through a sunlit garden with blooming roses, gentle breeze moving "
        "her hair, soft golden hour lighting, anamorphic bokeh, cinematic color grading",
        "",
    ),
    case(" ".join(["the dog walks"] * 20), ""),
    case("A boy flies a kite, wide shot, sunny day", "motion colour style", never=SLOTS["lens"] | SLOTS["lighting"]),
    # Not English, or no telling; a few foreign letters or names in English text do not matter.
    case("A toddler laughs happily", EVERY),
    case("A woman holds a sign that says 你好 in the market", EVERY),
    case("Los Angeles, a street with palm trees and people", EVERY, has="35mm lens"),
    case("The sign of the shop: 一只猫在海滩上奔跑", ""),
    case("Havet under månen", ""),
    case("Una mujer camina por la playa", ""),
    case("Un gato negro duerme en el sofá", ""),
    case("Une femme marche sur la plage", ""),
    case("On danse sous la pluie", ""),
    case("Ein Hund rennt am Strand entlang", ""),
    case("Der Ritter reitet durch den Wald", ""),
    case("A mulher caminha na praia", ""),
    case("As ondas quebram nas rochas", ""),
    case("Il cane corre nel parco", ""),
    case("Een hond rent over het strand", ""),
    case("En man går på gatan med sin hund", ""),
    case("Kobieta idzie przez las", ""),
    case("Bir kadın sahilde yürüyor", ""),
    case("Seekor kucing berlari di pantai", ""),
    case("Một cô gái đi trên bãi biển", ""),
    case("Женщина идёт по пляжу", ""),
    case("一只猫在海滩上奔跑，电影感", ""),
    case("猫が海辺を走る。", ""),
    case("고양이가 해변을 달린다", ""),
    case("امرأة تمشي على الشاطئ", ""),
    case("एक औरत समुद्र तट पर चलती है", ""),
    case("Blorp zanzu kethi", ""),
    case("12345 !!! 🎬", ""),
]


def test_the_table_is_long_and_without_repetition():
    assert len({row.prompt for row in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize("row", CASES, ids=lambda row: row.prompt[:40])
def test_enhancement_fills_exactly_the_open_slots(row: Case):
    phrases = added(row.prompt)
    assert slots_of(phrases) == set(row.fills.split())
    assert row.has <= set(phrases)
    assert not row.never & set(phrases)
    if not row.fills:
        assert compose(row.prompt, camera_motion=None, enhance=True) == row.prompt
    assert not re.search("camera|pan|zoom|dolly|orbit|crane|handheld|static", " ".join(phrases))
    for camera_motion in (None, "static", "pan_left", "handheld"):
        once = compose(row.prompt, camera_motion=camera_motion, enhance=True)
        assert compose(once, camera_motion=camera_motion, enhance=True) == once


def test_the_slots_come_in_the_order_of_the_formula():
    assert added("A cat sleeps on a sofa") == [
        "lifelike motion",
        "soft natural lighting",
        "35mm lens",
        "shallow depth of field",
        "balanced color grade",
        "cinematic style",
    ]


# Camera motion.


def test_the_fourteen_names_of_the_contract():
    names = """pan_left pan_right pan_up pan_down zoom_in zoom_out dolly_in dolly_out
        orbit_left orbit_right crane_up crane_down static handheld"""
    assert sorted(names.split()) == MOTIONS
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


def test_a_static_camera_leaves_the_motion_slot_alone():
    phrases = added("A cat sleeps on a sofa", camera_motion="static")
    assert phrases[:2] == ["static shot", "fixed camera"]
    assert not SLOTS["motion"] & set(phrases)


def test_a_moving_camera_changes_no_other_slot():
    plain = added("A cat sleeps on a sofa")
    for camera_motion in set(MOTIONS) - {"static"}:
        moved = added("A cat sleeps on a sofa", camera_motion=camera_motion)
        assert moved[-len(plain) :] == plain
        assert ", ".join(moved[: -len(plain)]) == CAMERA_MOTIONS[camera_motion]


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


# Length.


def test_sixty_words_are_long_and_fifty_nine_are_not():
    words = ["the", "dog", "walks"] * 20
    assert len(words) == LONG_PROMPT_WORDS
    long_prompt, shorter = " ".join(words), " ".join(words[:-1])
    assert compose(long_prompt, camera_motion=None, enhance=True) == long_prompt
    assert slots_of(added(shorter)) == ALL


def test_few_but_very_long_words_are_a_long_prompt_too():
    filler = "x" * 880
    assert added(f"the dog {filler}"[:900])
    assert not added(f"the dog {filler}"[:880] + "x" * 30)


@pytest.mark.parametrize(("letter", "bytes_each"), [("x", 1), ("猫", 3)])
def test_a_prompt_that_may_overrun_the_encoder_has_the_camera_phrase_in_front(letter: str, bytes_each: int):
    fits, overruns = letter * (1350 // bytes_each), letter * (1350 // bytes_each + 1)
    assert compose(fits, camera_motion="pan_left", enhance=True) == f"{fits}, camera pans left"
    leading = compose(overruns, camera_motion="pan_left", enhance=True)
    assert leading == f"Camera pans left. {overruns}"
    assert compose(leading, camera_motion="pan_left", enhance=True) == leading


def test_what_is_added_stays_short():
    longest = max(
        len(compose(row.prompt, camera_motion=name, enhance=True)) - len(row.prompt)
        for row in CASES
        for name in MOTIONS
    )
    assert 100 < longest < 250


# Joining.


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


def test_hyphens_line_breaks_and_capitals_are_read_alike():
    assert slots_of(added("A CITY AT NIGHT,\nTEAL-AND-ORANGE, Close\nUp, the end")) == {"motion", "lighting", "style"}


# Properties.

VOCABULARY = """a the cat knight night light neon anime camera pans left right zoom in out static shot close-up 35mm
    film noir sunset rain underwater product white background slow motion. walks, and! 猫 la playa que über — - _ '
    " ( ) color grade drone VHS style orbit crane up dolly handheld fixed"""
PIECES = st.sampled_from([*VOCABULARY.split(), "\n", ""])
PROMPTS = st.one_of(
    st.text(max_size=200), st.lists(PIECES, max_size=70).map(" ".join), st.sampled_from([row.prompt for row in CASES])
)
MOTION_OR_NONE = st.sampled_from([None, *MOTIONS])


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
    for name in MOTIONS:
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


# --- the borders of what is added


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


def test_a_camera_motion_leads_from_the_first_byte_beyond_the_encoders_budget() -> None:
    """450 tokens of three bytes each."""
    fits, overruns = "a" * 1350, "a" * 1351
    assert compose(fits, camera_motion="pan_left", enhance=False) == f"{fits}, camera pans left"
    assert compose(overruns, camera_motion="pan_left", enhance=False) == f"Camera pans left. {overruns}"


def test_a_prompt_of_300_tokens_is_enhanced_and_a_longer_one_is_not() -> None:
    fits = "the " + "a" * 896  # 900 bytes
    assert compose(fits, camera_motion=None, enhance=True) != fits
    assert compose(f"{fits}a", camera_motion=None, enhance=True) == f"{fits}a"
