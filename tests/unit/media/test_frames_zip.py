"""The ZIP of a video's frames, read back by zipfile and Pillow."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.kits.delivery import no_file_above
from tests.kits.frames import Alive
from worker.base.errors import Cancelled, EncodeFailed
from worker.media import VideoFile
from worker.media.encode import encode
from worker.media.ffmpeg import QUEUE_FRAMES
from worker.media.frames_zip import MAX_THREADS

SIDE = 64


def _noise(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 255, (SIDE, SIDE, 3), np.uint8)


def _made(
    folder: Path, frames: Iterator[np.ndarray], count: int, on_frame: Callable[[int], None] | None = None
) -> VideoFile:
    return encode(
        frames,
        path=folder / "0.mp4",
        width=SIDE,
        height=SIDE,
        num_frames=count,
        fps=16,
        poster=None,
        frames_zip=folder / "0.zip",
        on_frame=on_frame,
    )


def test_every_frame_is_there_to_the_bit_in_order(tmp_path: Path) -> None:
    video = _made(tmp_path, map(_noise, range(23)), 23)
    assert video.frames == tmp_path / "0.zip"
    assert sorted(tmp_path.iterdir()) == [video.path, video.frames]
    with zipfile.ZipFile(video.frames) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [f"frame_{index:05d}.png" for index in range(23)]
        for index, name in enumerate(archive.namelist()):
            with Image.open(io.BytesIO(archive.read(name))) as picture:
                assert picture.format == "PNG"
                assert np.array_equal(np.asarray(picture), _noise(index))


def test_the_same_frames_make_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    places = [_made(folder, map(_noise, range(5)), 5).frames for folder in (tmp_path, tmp_path / "again")]
    first, second = (place.read_bytes() for place in places if place is not None)
    assert first == second


def test_few_frames_are_in_memory(tmp_path: Path) -> None:
    alive = Alive(_noise)
    _made(tmp_path, alive.frames(80), 80)
    assert alive.most <= QUEUE_FRAMES + 3 + MAX_THREADS + 1


@pytest.mark.parametrize("at", [0, 7, 20])
def test_a_stop_leaves_no_file(tmp_path: Path, at: int) -> None:
    def stopped(done: int) -> None:
        if done > at:
            raise Cancelled

    with pytest.raises(Cancelled):
        _made(tmp_path, map(_noise, range(21)), 21, stopped)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_of_the_encode(tmp_path: Path) -> None:
    with no_file_above(100_000), pytest.raises(EncodeFailed, match="could not be written"):
        _made(tmp_path, map(_noise, range(40)), 40)
    assert list(tmp_path.iterdir()) == []
