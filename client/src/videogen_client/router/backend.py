"""What the router needs of a service that makes videos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from .request import Mode, VideoRequest

# What to do where the answer to a submission was lost: submit again under the same key, which makes one job; look for
# the job; or count it as unknown.
OnLost = Literal["resubmit", "find", "unknown"]
Status = Literal["queued", "running", "completed", "failed", "cancelled"]


@dataclass(frozen=True)
class Capabilities:
    """`max_pixels` of a frame and `max_seconds` of video are None where there is no limit."""

    modes: frozenset[Mode]
    min_seconds: float
    max_seconds: float | None
    max_pixels: int | None
    loras: bool
    audio: bool

    def why_not(self, request: VideoRequest) -> str | None:
        """The first thing that the request needs and the service has not."""
        seconds = request.duration_seconds
        if request.mode not in self.modes:
            return f"has no mode {request.mode}"
        if seconds < self.min_seconds or (self.max_seconds is not None and seconds > self.max_seconds):
            limit = "any length" if self.max_seconds is None else f"{self.max_seconds:g} s"
            return f"makes {self.min_seconds:g} s to {limit}, not {seconds:g} s"
        if self.max_pixels is not None and request.pixels > self.max_pixels:
            return f"makes {self.max_pixels} pixels a frame, not {request.pixels}"
        if request.loras and not self.loras:
            return "takes no LoRA"
        return "makes no audio" if request.audio and not self.audio else None


@dataclass(frozen=True)
class Estimate:
    """Of one video: its price in USD, and the seconds until it is done."""

    usd_low: float
    usd_high: float
    seconds_low: float
    seconds_high: float


@dataclass(frozen=True)
class State:
    """`cost_usd` is None where the service does not report it. `error` and `retryable` are of a failed job."""

    status: Status
    cost_usd: float | None = None
    error: str | None = None
    retryable: bool = True

    @property
    def has_ended(self) -> bool:
        return self.status in ("completed", "failed", "cancelled")


@dataclass(frozen=True)
class Clip:
    """A finished video. `details` is what the service says of it."""

    url: str
    details: Mapping[str, Any] = field(default_factory=dict)


class Backend(Protocol):
    """A service. `handle` is its id of a job. Every call but `submit` only reads, or may be repeated without harm.

    All calls raise Unreadable where there is no answer, and Gone where the service does not know the job.
    """

    name: str
    on_lost: OnLost

    def capabilities(self) -> Capabilities: ...

    def estimate(self, request: VideoRequest) -> Estimate: ...

    async def submit(self, request: VideoRequest, key: str, /) -> str:
        """Sends one request, once, and returns the handle. Raises Refused where no job was made, else Lost."""

    async def find(self, request: VideoRequest, since: float) -> str | None:
        """The handle of a job that was submitted after `since` (seconds of the epoch). Only where `on_lost` is find."""

    async def status(self, handle: str) -> State: ...

    async def cancel(self, handle: str) -> State:
        """The state afterwards: one that has not ended means that the job may go on."""

    async def result(self, handle: str) -> Clip:
        """Of a completed job."""

    async def download(self, clip: Clip, path: Path) -> None: ...

    async def close(self) -> None: ...
