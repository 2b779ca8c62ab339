"""The phrases that enhancement adds: of each slot of the prompt formula, only where the words leave it open."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from worker.request.prompt import LONG_PROMPT_WORDS, compose
from worker.request.prompt_words import CAMERA_MOTIONS

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
    for camera_motion in (None, *CAMERA_MOTIONS):
        once = compose(row.prompt, camera_motion=camera_motion, enhance=True)
        assert once.startswith(row.prompt)
        assert len(once) - len(row.prompt) < 250
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


def test_a_static_camera_leaves_the_motion_slot_alone():
    phrases = added("A cat sleeps on a sofa", camera_motion="static")
    assert phrases[:2] == ["static shot", "fixed camera"]
    assert not SLOTS["motion"] & set(phrases)


def test_a_moving_camera_changes_no_other_slot():
    plain = added("A cat sleeps on a sofa")
    for camera_motion in set(CAMERA_MOTIONS) - {"static"}:
        moved = added("A cat sleeps on a sofa", camera_motion=camera_motion)
        assert moved[-len(plain) :] == plain
        assert ", ".join(moved[: -len(plain)]) == CAMERA_MOTIONS[camera_motion]


def test_sixty_words_are_long_and_fifty_nine_are_not():
    words = ["the", "dog", "walks"] * 20
    assert len(words) == LONG_PROMPT_WORDS
    long_prompt, shorter = " ".join(words), " ".join(words[:-1])
    assert compose(long_prompt, camera_motion=None, enhance=True) == long_prompt
    assert slots_of(added(shorter)) == ALL


def test_hyphens_line_breaks_and_capitals_are_read_alike():
    assert slots_of(added("A CITY AT NIGHT,\nTEAL-AND-ORANGE, Close\nUp, the end")) == {"motion", "lighting", "style"}
