"""What both shells share of httpx: time limits, which failures pass, what a response becomes."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx

from .core import Reply, Send, Timing
from .downloads import Fetch, Fetched

ANSWER_LIMIT_BYTES = 64_000_000  # RunPod's own is 20 MB
_LONGEST_RETRY_AFTER_S = 30.0


class Passing(Exception):
    """The same request may succeed in a moment; `reply` is for the case that none does."""

    def __init__(self, reply: Reply, retry_after: str | None = None) -> None:
        super().__init__(reply.status)
        self.reply = reply
        self.retry_after = retry_after


def unanswered(failure: httpx.HTTPError | httpx.InvalidURL) -> Passing:
    """Of a request that got no answer."""
    unsent = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.InvalidURL)
    return Passing(Reply(0, was_sent=not isinstance(failure, unsent)))


class Budget:
    """The time of a request with its repetitions."""

    def __init__(self, step: Send, timing: Timing) -> None:
        self._deadline = time.monotonic() + step.within_s
        self._longest_s = step.wait_s
        self.of_stamina: dict[str, Any] = {
            "on": self._pause,
            "attempts": timing.attempts,
            "timeout": step.within_s,
            "wait_initial": timing.first_wait_s,
            "wait_max": min(timing.longest_wait_s, step.within_s / 2),
            "wait_jitter": timing.first_wait_s,
        }

    def wait_s(self) -> float:
        """Seconds that the next attempt may take."""
        return min(self._longest_s, max(0.01, self._deadline - time.monotonic()))

    def _pause(self, failure: Exception) -> bool | float:
        """Whether to try again, and after how many seconds where the server says so."""
        if not isinstance(failure, Passing):
            return False
        said = failure.retry_after
        if said is None or not (said.isascii() and said.isdigit()):
            return True
        pause_s = min(float(said), _LONGEST_RETRY_AFTER_S)
        return pause_s if time.monotonic() + pause_s < self._deadline else False


def timeouts(timing: Timing, wait_s: float) -> httpx.Timeout:
    """Of each read and write; the shells bound the whole."""
    return httpx.Timeout(wait_s, connect=min(timing.request_s, wait_s))


def stall(timing: Timing, step: Fetch) -> httpx.Timeout:
    """Of each read of a download."""
    return timeouts(timing, min(timing.stall_s, max(0.01, step.deadline - time.monotonic())))


def request_of(step: Send) -> dict[str, Any]:
    return {"method": step.method, "url": step.url, "headers": step.headers, "content": step.body}


def range_of(step: Fetch) -> dict[str, str]:
    resumed = {"Range": f"bytes={step.start}-"} if step.start else {}
    return {"Accept-Encoding": "identity", **resumed}


class Body:
    """Gathers the body of an answer. Raises Passing after the time, and for one that is too large."""

    def __init__(self, wait_s: float) -> None:
        self._pieces = bytearray()
        self._deadline = time.monotonic() + wait_s

    def add(self, piece: bytes) -> None:
        self._pieces += piece
        if time.monotonic() > self._deadline or len(self._pieces) > ANSWER_LIMIT_BYTES:
            raise Passing(Reply(0))

    def reply(self, response: httpx.Response) -> Reply:
        """Raises Passing for what may be otherwise in a moment."""
        try:
            content = json.loads(self._pieces)
        except ValueError:
            content = None
        reply = Reply(response.status_code, content if isinstance(content, dict) else None)
        if reply.status == 429 or reply.status >= 500:
            raise Passing(reply, response.headers.get("Retry-After"))
        return reply


class Sink:
    """Writes what a storage sends to the file of a download. Raises OSError."""

    def __init__(self, step: Fetch, response: httpx.Response) -> None:
        self._step = step
        self._written = step.start if response.status_code == 206 else 0
        self._file = step.part.open("ab" if response.status_code == 206 else "wb")

    def add(self, piece: bytes) -> bool:
        """False where no more is wanted: the time is over, or there is more than there should be."""
        limit = self._step.limit
        self._file.write(piece if limit is None else piece[: limit + 1 - self._written])
        self._written += len(piece)
        self._step.on_bytes(self._written)
        return time.monotonic() < self._step.deadline and (limit is None or self._written <= limit)

    def fetched(self, response: httpx.Response, *, is_whole: bool) -> Fetched:
        """What was written, on the disk; a storage that sends too much has sent the whole, which is wrong."""
        too_much = self._step.limit is not None and self._written > self._step.limit
        return Fetched(response.status_code, is_whole=is_whole or too_much)

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
