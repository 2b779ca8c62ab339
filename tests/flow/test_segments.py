"""Videos of several segments, through whole jobs on the demo model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest

from tests.flow.conftest import Runner, local_path, small


def frames_of(video: dict[str, Any]) -> np.ndarray:
    """uint8 [F, H, W, 3] of the delivered file."""
    reader = imageio_ffmpeg.read_frames(str(local_path(video["video_url"])))
    width, height = next(reader)["size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader])


def test_segments_become_one_video(run: Runner) -> None:
    answer = run(small(segments=[{}, {"prompt": "a dog", "num_frames": 9, "seed": 5}, {}]))

    (video,) = answer["videos"]
    assert (video["num_frames"], video["fps"], video["duration_seconds"]) == (17, 16, 1.062)
    assert [(each["first_frame"], each["num_frames"], each["seed"]) for each in video["segments"]] == [
        (0, 5, 1),
        (5, 8, 5),
        (13, 4, 3),
    ]
    assert len(frames_of(video)) == 17
