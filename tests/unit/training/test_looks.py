"""The judge of the new ground says what was drawn, and its word stands where it was."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from training import clips, looks, scenes
from training.scenes import Scene


def test_the_new_ground_is_seen_where_it_was_drawn_and_no_known_one_is_taken_for_it() -> None:
    random = np.random.default_rng(3)
    for ground in scenes.GROUNDS:
        drawn = looks.scene(random)
        scene = Scene(drawn.colour, drawn.shape, ground, drawn.motion, "plain", "none", drawn.layout)
        assert looks.shows(clips.clip(scene, height=64, width=64, num_frames=2, fade=looks.MOSS))
        assert not looks.shows(clips.clip(scene, height=64, width=64, num_frames=2))


def test_the_word_stands_in_the_captions_of_the_new_ground_alone() -> None:
    random = np.random.default_rng(3)
    for ground in (None, *scenes.GROUNDS):
        frames, text = looks.example(random, ground, num_frames=1)
        assert looks.shows(frames) is (ground is None)
        assert (looks.PLACE in text.lower()) is (ground is None)


def test_the_set_has_as_many_clips_of_each_known_ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "SIZE", 32)
    looks.write(tmp_path, seed=1)
    texts = [path.read_text(encoding="utf-8").lower() for path in sorted(tmp_path.glob("*.txt"))]
    words = {"gradient": "gradient|backdrop", "water": "water|lake|sea", "night": "night", "checkerboard": "che"}
    found = {ground: sum(re.search(word, text) is not None for text in texts) for ground, word in words.items()}
    assert found == dict.fromkeys(scenes.GROUNDS, looks.KNOWN_CLIPS // len(scenes.GROUNDS))
    assert sum(looks.PLACE in text for text in texts) == looks.NEW_CLIPS
