"""The frozen values that one stage hands to the next.

Nothing here imports torch; a `Conditioning` carries Pillow images, a latent stays inside the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What the request pointed to, fetched and decoded.

    image, last_image: RGB, already at the size of the frame. video: RGB frames at the request's fps and size.
    """

    image: Image | None = None
    last_image: Image | None = None
    video: Sequence[Image] | None = None


@dataclass(frozen=True, slots=True)
class VideoFile:
    """An encoded video on the local disk. `poster` is a JPEG, None where none was asked for."""

    path: Path
    poster: Path | None
    width: int
    height: int
    num_frames: int
    fps: int
    size_bytes: int
    sha256: str

    @property
    def duration_seconds(self) -> float:
        return self.num_frames / self.fps


@dataclass(frozen=True, slots=True)
class Delivery:
    """Where a stored video can be found. The URLs are what the caller receives."""

    video_url: str
    thumbnail_url: str | None
