"""The files that a video can be: suffix and content type of each format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from worker.request.payload import OutputFormat


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of file. `suffix` begins with a dot."""

    name: OutputFormat
    suffix: str
    content_type: str


MP4 = Format("mp4", ".mp4", "video/mp4")
WEBM = Format("webm", ".webm", "video/webm")
GIF = Format("gif", ".gif", "image/gif")
WEBP = Format("webp", ".webp", "image/webp")

FORMATS: Mapping[OutputFormat, Format] = {each.name: each for each in (MP4, WEBM, GIF, WEBP)}
