"""The prompt as generated: the caller's words, the camera motion as Wan reads it, and what the words leave unsaid.

The caller's words (trimmed) stand unchanged and unbroken in every result. `camera_motion` is the caller's own
parameter: its phrase is added with or without enhancement, in any language, unless the words already ask for that
very move; where they ask for another one the parameter still speaks, and the words stay. Enhancement never moves the
camera. It fills the later slots of Wan 2.2's formula (subject + scene + motion + aesthetic + style) with at most one
entry each for motion, lighting, lens, colour and style, and only where the words are silent: a missing tag costs
little, a contradicting one costs the shot, so every doubt (language included) is decided for adding nothing.

Sources: the rewriting rules of Wan 2.2's `wan/utils/system_prompt.py` (few aesthetic tags, no cinematic vocabulary on
drawn styles, no prose about mood, "camera pushes forward", "pulls back", "tilts") and `text_len = 512` of its
`shared_config.py`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from worker.request.prompt_words import (
    CAMERA_MOTIONS,
    COLOUR,
    ENGLISH,
    FOREIGN,
    LENS,
    LIGHTING,
    MOVES,
    OWN_MOVES,
    RAW_FOOTAGE,
    SLOTS,
    STYLE,
)

if TYPE_CHECKING:
    from worker.request.values import VideoRequest

__all__ = ["CAMERA_MOTIONS", "LONG_PROMPT_WORDS", "compose", "of_request"]

LONG_PROMPT_WORDS = 60
# Of the 512 tokens that the text encoder reads; the rest is cut silently.
_ENCODER_BUDGET_TOKENS = 450
_ENHANCEABLE_TOKENS = 300


def compose(prompt: str, *, camera_motion: str | None, enhance: bool) -> str:
    """The prompt that the model receives.

    `camera_motion` is None or a key of CAMERA_MOTIONS (KeyError otherwise). Where there is nothing to add, `prompt`
    itself is returned; otherwise its trimmed words, then the additions after a comma or as a sentence of their own. A
    prompt that may overrun the text encoder has the camera phrase in front, where it is not cut off. Deterministic;
    composing a result again with the same arguments changes nothing.
    """
    words = prompt.strip()
    text = _normal(words)
    camera = [] if camera_motion is None else _missing_move(text, camera_motion)
    if camera and _tokens(words) > _ENCODER_BUDGET_TOKENS:
        return f"{_capitalised(camera[0])}. {words}"
    additions = [*camera, *(_missing_slots(", ".join([text, *camera])) if enhance else ())]
    return _joined(words, ", ".join(additions)) if additions else prompt


def of_request(request: VideoRequest) -> str:
    """The prompt that the model receives for a request."""
    return compose(request.prompt, camera_motion=request.camera_motion, enhance=request.enhance_prompt)


def _normal(text: str) -> str:
    """For matching only: hyphens, underscores and white space become single spaces, apostrophes straight."""
    return re.sub(r"[\s\-_‐‑–—]+", " ", text.replace("’", "'")).strip()


def _tokens(text: str) -> float:
    """Tokens, estimated high: three bytes of UTF-8 are one CJK character or most of an English syllable."""
    return len(text.encode("utf-8", "replace")) / 3


def _capitalised(phrase: str) -> str:
    return phrase[:1].upper() + phrase[1:]


def _joined(words: str, additions: str) -> str:
    if not words:
        return additions
    if re.search(r"[.!?…。！？]['\"”’»」』）)\]]*$", words):
        return f"{words} {_capitalised(additions)}."
    return f"{words}{' ' if words[-1] in ',;:，、；：-–—' else ', '}{additions}"


def _missing_move(text: str, camera_motion: str) -> list[str]:
    phrase = CAMERA_MOTIONS[camera_motion]
    said = OWN_MOVES[camera_motion].search(text) or MOVES[camera_motion].search(text)
    return [] if said else [phrase]


def _missing_slots(text: str) -> list[str]:
    """The phrases, in the order of the formula, for the slots that an English prompt of moderate length leaves open."""
    words = text
    for own in OWN_MOVES.values():
        words = own.sub(" ", words)
    if len(words.split()) >= LONG_PROMPT_WORDS or _tokens(words) > _ENHANCEABLE_TOKENS or not _is_english(words):
        return []
    open_slots = [slot for slot in SLOTS if not slot.said.search(text)]
    structured = LIGHTING not in open_slots and LENS not in open_slots and not {COLOUR, STYLE} <= set(open_slots)
    if structured or RAW_FOOTAGE.search(text):
        return []
    return [next((phrase for kind, phrase in slot.choices if kind.search(text)), slot.default) for slot in open_slots]


_LATIN_END = 0x0250


def _is_english(text: str) -> bool:
    """Whether English clearly outweighs every other language; False where no word decides."""
    letters = [letter for letter in text if letter.isalpha()]
    if sum(ord(letter) >= _LATIN_END for letter in letters) > 0.15 * len(letters):
        return False
    words = re.findall(r"[^\W\d]+(?:'s)?", text.lower())
    english = sum(word in ENGLISH or bool(re.search(r"[a-z]{3}(?:ing|ly)$|[a-z]'s$", word)) for word in words)
    foreign = sum(word in FOREIGN or not word.isascii() for word in words)
    return english > foreign
