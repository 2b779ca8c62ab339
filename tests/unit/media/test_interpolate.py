"""Frames at a higher rate: exact counts, kept frames, likeness to true frames, and ffmpegs that misbehave."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from benchmarks.interpolate import likeness
from tests.kits.frames import Alive, moving, script
from tests.kits.slow import slow
from worker.base.errors import Cancelled, EncodeFailed
from worker.media import interpolate
from worker.media.interpolate import CHUNK_FRAMES, at_rate, count, interpolated

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


def unchecked() -> None:
    """Nothing stops the work."""


def _at(frames: list[np.ndarray], fps: int, target: int) -> list[np.ndarray]:
    made, _ = at_rate(iter(frames), num_frames=len(frames), fps=fps, target=target, check=unchecked)
    return list(made)


RATES = [(5, 16, 32), (9, 16, 24), (5, 59, 60), (1, 16, 32), *slow((21, 16, 60), (9, 24, 60), (17, 16, 17), (9, 1, 3))]


@pytest.mark.parametrize(("given", "fps", "target"), RATES)
def test_the_duration_stays_and_generated_frames_are_kept(given: int, fps: int, target: int) -> None:
    frames = list(moving(given))
    made = _at(frames, fps, target)
    assert len(made) == count(given, fps, target)
    assert abs(Fraction(len(made), target) - Fraction(given, fps)) <= Fraction(1, 2 * target)
    for number, frame in enumerate(made):
        instant, between = divmod(number * fps, target)
        if not between or instant >= given - 1:
            assert frame is frames[min(instant, given - 1)]
        else:
            assert (frame.shape, frame.dtype) == (frames[0].shape, np.uint8)


@pytest.mark.parametrize(("fps", "target"), [(60, 50), (60, 7), (51, 50)])
def test_a_lower_rate_leaves_frames_out_and_makes_none(fps: int, target: int) -> None:
    frames = list(moving(31))
    made = _at(frames, fps, target)
    assert len(made) == count(31, fps, target)
    assert [next(i for i, each in enumerate(frames) if each is frame) for frame in made] == [
        number * fps // target for number in range(len(made))
    ]


def test_the_same_rate_changes_nothing() -> None:
    frames = moving(5)
    assert at_rate(frames, num_frames=5, fps=16, target=16, check=unchecked) == (frames, 5)


@pytest.mark.parametrize(("given", "fps", "target", "counted"), [(81, 16, 24, 122), (81, 16, 60, 304), (1, 60, 7, 1)])
def test_the_count_is_rounded(given: int, fps: int, target: int, counted: int) -> None:
    assert count(given, fps, target) == counted


@pytest.mark.parametrize(("fps", "target"), [(16, 32), *slow((16, 60))])
def test_chunks_and_workers_do_not_show(monkeypatch: pytest.MonkeyPatch, fps: int, target: int) -> None:
    given = 2 * CHUNK_FRAMES + 3

    def made(workers: int) -> list[np.ndarray]:
        frames = moving(given)
        return list(interpolated(frames, num_frames=given, fps=fps, target=target, check=unchecked, workers=workers))

    divided = made(3)
    monkeypatch.setattr(interpolate, "CHUNK_FRAMES", given + 1)
    for one, whole in zip(divided, made(1), strict=True):
        assert np.array_equal(one, whole)


@pytest.mark.parametrize("ratio", [2, 4])
def test_it_is_liker_to_the_true_frames_than_repeating_and_blending(ratio: int) -> None:
    true = np.stack(list(moving(4 * ratio + 1)))
    found = likeness(true, ratio)
    assert found["motion"] > found["blended"] + 0.005
    assert found["motion"] > found["repeated"] + 0.02


@pytest.mark.slow  # it measures memory
def test_few_frames_are_in_memory() -> None:
    frame = next(moving(1))
    alive = Alive(lambda index: frame + np.uint8(index % 7))
    made = interpolated(alive.frames(120), num_frames=120, fps=16, target=32, check=unchecked, workers=2)
    assert sum(1 for _ in made) == 240
    # Two chunks at work and one that is filled, each with what is before and behind it; and the frames handed out.
    assert alive.most <= 5 * CHUNK_FRAMES


# --- what fails and what stops


def test_closing_it_ends_the_processes(tmp_path: Path) -> None:
    made = interpolated(moving(40), num_frames=40, fps=16, target=32, check=unchecked, workers=2)
    assert len(list(islice(made, 3))) == 3
    made.close()


def test_a_stop_is_seen_while_ffmpeg_hangs(tmp_path: Path) -> None:
    def stopped() -> None:
        raise Cancelled

    ffmpeg = script(tmp_path, "sleep 600")
    with pytest.raises(Cancelled):
        list(interpolated(moving(9), num_frames=9, fps=16, target=32, check=stopped, ffmpeg=ffmpeg))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('cat > /dev/null; echo "boom: no filter" >&2; exit 3', "ended early"),
        ("exit 3", "ended early"),
        ("cat > /dev/null", "made 0 frames of a chunk where 18 were expected"),
    ],
)
def test_a_failing_ffmpeg(tmp_path: Path, caplog: pytest.LogCaptureFixture, body: str, message: str) -> None:
    ffmpeg = script(tmp_path, body)
    with pytest.raises(EncodeFailed, match=message) as caught:
        list(interpolated(moving(9), num_frames=9, fps=16, target=32, check=unchecked, ffmpeg=ffmpeg))
    assert "boom" not in str(caught.value)
    assert ("boom" in body) == ("boom: no filter" in caplog.text)


def test_a_hanging_ffmpeg_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpolate, "CHUNK_WAIT_S", 0.2)
    ffmpeg = script(tmp_path, "sleep 600")
    with pytest.raises(EncodeFailed, match="stopped responding"):
        list(interpolated(moving(9), num_frames=9, fps=16, target=32, check=unchecked, ffmpeg=ffmpeg))


def test_an_absent_ffmpeg(tmp_path: Path) -> None:
    with pytest.raises(EncodeFailed, match="could not be started"):
        list(interpolated(moving(9), num_frames=9, fps=16, target=32, check=unchecked, ffmpeg=tmp_path / "ffmpeg"))


def test_what_the_decoder_raises_passes_unchanged() -> None:
    raised = Cancelled()

    def frames() -> Iterator[np.ndarray]:
        yield from moving(12)
        raise raised

    with pytest.raises(Cancelled) as caught:
        list(interpolated(frames(), num_frames=21, fps=16, target=32, check=unchecked))
    assert caught.value is raised
