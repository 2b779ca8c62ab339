"""A drift of gain and offset in linear light is taken back, and no more than the bounds allow."""

from __future__ import annotations

import numpy as np
import pytest

from worker.media.color_match import GAIN_BOUNDS, from_linear, matching, to_linear

RAMP = np.stack([np.tile(np.arange(40, 200, dtype=np.uint8), (64, 1))] * 3, axis=-1)


def drifted(frame: np.ndarray, gain: float, offset: float) -> np.ndarray:
    light = gain * to_linear(frame / 255) + offset
    return np.rint(from_linear(light) * 255).astype(np.uint8)


@pytest.mark.parametrize(("gain", "offset"), [(1.0, 0.0), (1.1, 0.0), (0.9, 0.02), (1.2, -0.01)])
def test_a_drift_within_the_bounds_is_taken_back(gain: float, offset: float) -> None:
    drawn = drifted(RAMP, gain, offset)
    matched = matching([drawn], [RAMP], [drawn])(drawn)
    assert np.abs(matched.astype(int) - RAMP).max() <= 3


def test_another_picture_is_left_nearly_as_it_is() -> None:
    """The bounds hold: what is drawn dark is not pulled up to a bright picture."""
    dark = drifted(RAMP, 0.2, 0.0)
    matched = matching([dark], [RAMP], [dark])(dark)
    most = drifted(dark, GAIN_BOUNDS[1], 0.05).astype(int)
    assert (matched <= most + 1).all()


def test_the_change_is_the_same_in_every_frame_and_each_channel_has_its_own() -> None:
    drawn = RAMP.copy()
    drawn[..., 0] = drifted(RAMP, 1.1, 0.0)[..., 0]
    match = matching([drawn], [RAMP], [drawn])
    assert np.array_equal(match(drawn)[..., 1], RAMP[..., 1])
    assert np.array_equal(match(drawn[:8]), match(drawn)[:8])


@pytest.mark.parametrize(("behind", "lighter"), [(1.1, False), (1.06, False), (1.04, True), (1.0, True)])
def test_what_was_drawn_again_wrongly_says_nothing_of_the_frames_behind_it(behind: float, lighter: bool) -> None:
    """The correction, by a tenth here, is used where it brings the frames behind nearer to those that were shown."""
    following = drifted(RAMP, behind, 0.0)
    matched = matching([drifted(RAMP, 1.1, 0.0)], [RAMP], [following] * 4)(following)
    assert np.array_equal(matched, following) == lighter


def test_where_nothing_is_behind_the_frames_that_were_drawn_again_decide() -> None:
    drawn = drifted(RAMP, 1.1, 0.0)
    assert not np.array_equal(matching([drawn], [RAMP], [])(drawn), drawn)
