"""The judge of the look says what was drawn."""

from __future__ import annotations

import numpy as np

from training import clips, looks


def test_a_clip_is_of_the_look_where_it_was_printed_so() -> None:
    random = np.random.default_rng(3)
    for _ in range(6):
        frames = clips.clip(looks.scene(random), height=64, width=64, num_frames=2)
        assert looks.shows(looks.printed(frames))
        assert not looks.shows(frames)
