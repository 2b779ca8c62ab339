"""A video for the engine, as a test wants it: the request's own words, and conditioning that is made at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from worker.engine import Conditioning, Engine, Video
from worker.request import VideoRequest


def given(engine: Engine, request: VideoRequest, conditioning: Conditioning | None = None, **more: Any) -> Video:
    """`more` are `loras` (in a tuple), `distilled` and `later`."""
    image = Conditioning() if conditioning is None else conditioning
    return replace(engine.video(request), prompt=request.prompt, conditioning=image, **more)
