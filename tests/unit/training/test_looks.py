"""The judge of the new ground says what was drawn, and its word stands where it was."""

from __future__ import annotations

import numpy as np

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
    for new in (True, False):
        frames, text = looks.example(random, new=new, num_frames=1)
        assert looks.shows(frames) is new
        assert (looks.PLACE in text.lower()) is new
