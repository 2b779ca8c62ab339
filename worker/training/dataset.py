"""The data set of a training: pictures and videos of an archive or a folder, as frames on the disk, with captions."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.request.training import TrainingRequest


@dataclass(frozen=True, slots=True)
class Clip:
    """One picture or video of the set, at the request's size and the model's rate.

    `name` is its path inside the archive; `caption` has the trigger phrase before it. `frames` is an .npy file, uint8
    [F, H, W, 3] RGB, for `np.load(..., mmap_mode="r")`; F is 1 for a picture, else `frame_stride` * k + 1.
    """

    name: str
    caption: str
    frames: Path


@dataclass(frozen=True, slots=True)
class Refused:
    """A file that is not used, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """What is trained on, in the order of names (at least one), and what is held out, which is none of them.

    `held_out` is empty where there are too few.
    """

    clips: tuple[Clip, ...]
    held_out: tuple[Clip, ...]
    refused: tuple[Refused, ...]

    def report(self) -> dict[str, Any]:
        """`dataset` of the result."""
        raise NotImplementedError


def read_dataset(archive_or_folder: Path, into: Path, request: TrainingRequest, *, stop: threading.Event) -> Dataset:
    """Decode the pictures and videos of a ZIP or a folder to files in `into`.

    Raises InputInvalid, with the path `train.training_data_url`, for a set that cannot be used, and Cancelled.
    """
    raise NotImplementedError
