"""Whether a clip is good enough to be delivered: technical checks with PyAV, and a score of the operator's own."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from .backend import Backend, Clip
from .errors import PolicyInvalid, Problem
from .jobs import Job
from .policy import Quality
from .request import VideoRequest

# Gets what the service says of the clip, with its `video_url`; returns 0 to 1.
Scorer = Callable[[Mapping[str, Any]], Awaitable[float]]

LOG = logging.getLogger("videogen_client.router")
CODECS = ("h264", "hevc", "av1", "vp9", "vp8", "mpeg4", "gif", "webp")
_SMALL = (64, 36)  # pixels of the grey copies that are compared
_BLACK = 24  # of 255: the brightest pixel of a black frame, whose luma is 16 where its range is limited
_SAME = 1.5  # of 255: the mean difference of two frames that are the same but for the encoder
_SCORE_S = 60.0


class QualityGate:
    """Called with a clip: returns why it is not good enough, or None. Raises BackendError where it is not read."""

    def __init__(self, rules: Quality, scorer: Scorer | None) -> None:
        """Raises PolicyInvalid where PyAV is needed and is not installed."""
        if rules.technical and importlib.util.find_spec("av") is None:
            raise PolicyInvalid([Problem("quality.technical", "needs PyAV: pip install 'videogen-client[quality]'")])
        self._rules = rules
        self._scorer = scorer

    async def __call__(self, backend: Backend, clip: Clip, job: Job) -> str | None:
        if self._rules.technical:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "clip"
                await backend.download(clip, path)
                why_not = await asyncio.to_thread(fault_of, path, job.request)
            if why_not is not None:
                return why_not
        score = await self._score({**clip.details, "video_url": clip.url})
        if score is not None and score < self._rules.min_score:
            return f"its score is {score:.2f}, and {self._rules.min_score:.2f} are asked for"
        return None

    async def _score(self, clip: Mapping[str, Any]) -> float | None:
        """None where there is no scorer, or where it fails: its outage stops no clip that has been paid for."""
        try:
            if self._scorer is not None:
                return await self._scorer(clip)
            if self._rules.scorer_url is None:
                return None
            async with httpx.AsyncClient(timeout=_SCORE_S) as http:
                reply = await http.post(self._rules.scorer_url, json={"video_url": clip["video_url"]})
            return float(reply.raise_for_status().json()["score"])
        except Exception as failure:
            LOG.warning("a clip is delivered without its score: %s", type(failure).__name__)
            return None


def fault_of(path: Path, request: VideoRequest) -> str | None:
    """Codec, size, length, black and frozen frames."""
    import av  # of an extra

    frames = 0
    brightest, changed = 0, 0.0
    first: bytes | None = None
    last_s = 0.0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                return "has no picture"
            stream = container.streams.video[0]
            codec = stream.codec_context.name
            if not codec.startswith(CODECS) and codec not in ("libdav1d", "libaom-av1"):
                return f"its codec is {codec}"
            width, height = stream.codec_context.width, stream.codec_context.height
            rate = float(stream.average_rate or 0)
            for frame in container.decode(stream):
                frames += 1
                last_s = frame.time or last_s
                grey = frame.reformat(width=_SMALL[0], height=_SMALL[1], format="gray")
                pixels = bytes(grey.planes[0])[: _SMALL[0] * _SMALL[1]]
                brightest = max(brightest, max(pixels))
                if first is None:
                    first = pixels
                else:
                    difference = sum(abs(one - other) for one, other in zip(first, pixels, strict=True)) / len(pixels)
                    changed = max(changed, difference)
    except (av.FFmpegError, OSError) as failure:
        return f"cannot be decoded: {type(failure).__name__}"
    if frames == 0:
        return "has no frames"
    seconds = last_s + (1 / rate if rate else 0.0)
    return _fault(request, frames, seconds, (width, height), brightest, changed)


def _fault(
    request: VideoRequest, frames: int, seconds: float, size: tuple[int, int], brightest: int, changed: float
) -> str | None:
    """A service may round a length and a size to what its model makes: a fifth and an eighth are let pass."""
    wanted_s = request.duration_seconds
    if abs(seconds - wanted_s) > max(0.5, wanted_s / 5):
        return f"is {seconds:.1f} s long, not {wanted_s:g} s"
    if request.width is not None and request.height is not None:
        asked = (request.width, request.height)
        if any(abs(found - each) > each / 8 for found, each in zip(size, asked, strict=True)):
            return f"is {size[0]}x{size[1]}, not {asked[0]}x{asked[1]}"
    if brightest <= _BLACK:
        return "is black"
    return "is frozen" if frames > 1 and changed < _SAME else None
