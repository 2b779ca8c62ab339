"""Both shells of the client, called in the same way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.kits.endpoint_double import API_KEY, ENDPOINT_ID, EndpointDouble, State
from tests.kits.paid_endpoint import PaidEndpoint
from videogen_client import AsyncClient, Client, Timing

FAST = Timing(poll_s=0.005, request_s=5, retry_s=10, attempts=6, first_wait_s=0.001, longest_wait_s=0.01, stall_s=5)


class Awaited:
    """An `AsyncClient` whose calls block."""

    def __init__(self, stack: ExitStack, *arguments: Any, **options: Any) -> None:
        self._runner = stack.enter_context(asyncio.Runner())
        self._client = self._runner.run(self._made(arguments, options))
        stack.callback(lambda: self._runner.run(self._client.close()))

    async def _made(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> AsyncClient:
        return AsyncClient(*arguments, **options)

    async def _all(self, events: AsyncIterator[Any]) -> list[Any]:
        return [event async for event in events]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            found = getattr(self._client, name)(*arguments, **options)
            return self._runner.run(self._all(found) if name == "stream" else found)

        return call


@pytest.fixture
def endpoint() -> Iterator[PaidEndpoint]:
    with PaidEndpoint() as double:
        yield double


@pytest.fixture(params=["blocking", "asyncio"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes a client with the arguments of `Client`, in either form."""
    with ExitStack() as stack:

        def make(*arguments: Any, **options: Any) -> Any:
            options.setdefault("timing", FAST)
            if request.param == "blocking":
                return stack.enter_context(Client(*arguments, **options))
            return Awaited(stack, *arguments, **options)

        yield make


@pytest.fixture
def client(connect: Callable[..., Any], endpoint: PaidEndpoint) -> Any:
    return connect(ENDPOINT_ID, API_KEY, base_url=endpoint.url)


class Scripted(EndpointDouble):
    """Plays its script, and knows how to refuse to cancel."""

    def cancel(self, job_id: str) -> State:
        return {"id": job_id, "status": "COMPLETED"}


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    with Scripted() as double:
        yield double


@pytest.fixture
def to_scripted(connect: Callable[..., Any], scripted: Scripted) -> Any:
    return connect(ENDPOINT_ID, API_KEY, base_url=scripted.url)
