"""What all services have in common: capabilities and estimates from the policy, and one reading of HTTP's failures."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import httpx

from ..backend import Capabilities, Clip, Estimate, OnLost
from ..errors import BackendError, Gone, Lost, Refused, Unreadable
from ..policy import BackendTable, Price
from ..request import VideoRequest

# Headers of a client that submits, and does nothing else: each submission has a connection of its own. A service may
# close one that was idle just as a request is sent on it, and then nobody knows whether there is a job.
FRESH = {"Connection": "close"}
_DOWNLOAD_S = 300.0


class Service:
    """Base of a backend. `key` is the service's API key."""

    lost_by_default: ClassVar[OnLost] = "unknown"

    def __init__(self, name: str, table: BackendTable, prices: Sequence[Price], key: str | None) -> None:
        self.name = name
        self.table = table
        self.key = key or ""
        self.model = table.model or ""
        self.on_lost: OnLost = self.lost_by_default if table.on_lost is None else table.on_lost
        self._prices = [each for each in prices if each.backend == name]

    def capabilities(self) -> Capabilities:
        table = self.table
        return Capabilities(
            table.modes, table.min_seconds, table.max_seconds, table.max_pixels, table.loras, table.audio
        )

    def estimate(self, request: VideoRequest) -> Estimate:
        """A request that no price fits counts as infinitely dear, so that it is never sent."""
        length = request.duration_seconds
        starts, rates = self.table.start_s, self.table.seconds_per_video_second
        seconds = [start + rate * length for start, rate in zip(starts, rates, strict=True)]
        price = next((each for each in self._prices if _fits(each, request)), None)
        if price is None:
            return Estimate(float("inf"), float("inf"), seconds[0], seconds[1])
        units = {"video": [1.0, 1.0], "video_second": [length, length], "gpu_hour": [each / 3600 for each in seconds]}
        usd = [each * unit for each, unit in zip(price.usd, units[price.per], strict=True)]
        return Estimate(usd[0], usd[1], seconds[0], seconds[1])

    def fields(self, request: VideoRequest, own: dict[str, Any]) -> dict[str, Any]:
        """`own` without what is not given, between the policy's `parameters` and the request's `extras`."""
        given = {name: value for name, value in own.items() if value is not None} | self._length(request)
        return {**self.table.parameters, **given, **request.extras.get(self.name, {})}

    def _length(self, request: VideoRequest) -> dict[str, Any]:
        """In the field and the form that the model has for it. Frames are 4 k + 1, as Wan's are."""
        field, seconds = self.table.length_field, request.duration_seconds
        if field is None:
            return {}
        frames = 4 * round(seconds * (request.fps or self.table.length_fps) / 4) + 1
        forms = {"seconds": seconds, "text": f"{seconds:g}", "text_s": f"{seconds:g}s", "frames": frames}
        return {field: forms[self.table.length_as]}

    async def find(self, request: VideoRequest, since: float) -> str | None:
        raise NotImplementedError(f"{self.name} has no list of its jobs")

    async def download(self, clip: Clip, path: Path) -> None:
        with reading():
            headers = self.download_headers()
            http = httpx.AsyncClient(verify=tls(), follow_redirects=True, timeout=_DOWNLOAD_S)
            async with http, http.stream("GET", clip.url, headers=headers) as response:
                response.raise_for_status()
                with path.open("wb") as file:
                    async for piece in response.aiter_bytes():
                        file.write(piece)

    def download_headers(self) -> dict[str, str]:
        """Empty: the key of a service never goes to a storage."""
        return {}

    async def close(self) -> None:
        return


@functools.cache
def tls() -> ssl.SSLContext:
    """One for all services: reading the certificates takes a tenth of a second."""
    return httpx.create_ssl_context()


def _fits(price: Price, request: VideoRequest) -> bool:
    is_small = price.max_pixels is None or request.pixels <= price.max_pixels
    return is_small and (price.audio is None or price.audio == request.audio)


@contextmanager
def submitting() -> Iterator[None]:
    """Raises Refused where the failure proves that there is no job, and Lost for every other one."""
    try:
        yield
    except BackendError:
        raise
    except Exception as failure:
        status = _status_of(failure)
        message = _message_of(failure, status)
        if status in (400, 413, 415, 422):
            raise Refused(message, retryable=False) from failure
        # A wrong key, no credit or a wrong model is the operator's fault: another backend may do it.
        if status in (401, 402, 403, 404, 405, 429, 503) or _never_connected(failure):
            raise Refused(message) from failure
        raise Lost(message) from failure


@contextmanager
def reading() -> Iterator[None]:
    """Raises Gone where the service does not know the job, and Unreadable for every other failure."""
    try:
        yield
    except BackendError:
        raise
    except Exception as failure:
        status = _status_of(failure)
        raise (Gone if status in (404, 410) else Unreadable)(_message_of(failure, status)) from failure


def _status_of(failure: BaseException) -> int | None:
    """SDKs call it `status_code`, `status` or `code`; httpx has it in the response."""
    holder = failure.response if isinstance(failure, httpx.HTTPStatusError) else failure
    for name in ("status_code", "status", "code"):
        value = getattr(holder, name, None)
        if isinstance(value, int):
            return value
    return None


def _message_of(failure: BaseException, status: int | None) -> str:
    """Without what the service wrote: that may hold the prompt or an address with a key."""
    return f"{type(failure).__name__}" if status is None else f"the service returned {status}"


def _never_connected(failure: BaseException | None) -> bool:
    """SDKs wrap the error of their HTTP library, httpx or its successor, whose classes have the same names."""
    while failure is not None:
        if type(failure).__name__ in ("ConnectError", "ConnectTimeout", "PoolTimeout"):
            return True
        failure = failure.__cause__
    return False
