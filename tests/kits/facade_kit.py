"""The facade on loopback, in a thread of its own, in front of an endpoint of RunPod or a local worker.

    with FacadeServer(tmp_path, endpoint.url) as facade:
        client = openai.OpenAI(base_url=f"{facade.url}/v1", api_key="key-a")

Entered again with the same folder it is a facade that was started again.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import openai
import pytest
import uvicorn

from tests.kits.endpoint_double import API_KEY, ENDPOINT_ID
from tests.kits.loopback import wait_until
from tests.kits.paid_endpoint import PaidEndpoint
from videogen_client import AsyncClient, Timing
from videogen_client.serve.app import make_app
from videogen_client.serve.backend import Backend
from videogen_client.serve.content import Content
from videogen_client.serve.figures import Figures
from videogen_client.serve.routes import Facade
from videogen_client.serve.store import Store
from videogen_client.serve.videos import Videos

KEYS = ("key-a", "key-b")
FAST = Timing(poll_s=0.005, request_s=5, retry_s=2, attempts=4, first_wait_s=0.001, longest_wait_s=0.01, stall_s=5)


class FacadeServer:
    """`runpod_url` is that of an endpoint, `worker_url` that of a local worker, `backend` makes another that serves:
    one of them is given."""

    def __init__(
        self,
        folder: Path,
        runpod_url: str | None = None,
        *,
        worker_url: str | None = None,
        backend: Callable[[], Backend] | None = None,
        keys: Sequence[str] = KEYS,
        secret: str | None = None,
        webhook_url: str | None = None,
        poll_s: float = 0.02,
        cache_bytes: int = 10**9,
        timing: Timing = FAST,
    ) -> None:
        self.url = ""
        self._folder = folder
        self._target = (ENDPOINT_ID, API_KEY, runpod_url) if worker_url is None else (None, None, worker_url)
        self._backend = backend
        self._options = (keys, secret, webhook_url, poll_s, cache_bytes, timing)
        self._server: uvicorn.Server | None = None
        self._thread = threading.Thread(target=self._run, name="facade")

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        keys, secret, webhook_url, poll_s, cache_bytes, timing = self._options
        endpoint_id, api_key, base_url = self._target
        client: Backend
        if self._backend is not None:
            client = self._backend()
        else:
            client = AsyncClient(endpoint_id, api_key, base_url=base_url, timing=timing)
        figures = Figures()
        content = Content(client, self._folder / "files", cache_bytes)
        store = Store(self._folder / "videos.sqlite3")
        videos = Videos(client, store, content, poll_s=poll_s, webhook_url=webhook_url, on_end=figures.ended)
        app = make_app(Facade(videos, figures, keys, secret, poll_s))
        config = uvicorn.Config(app, host="127.0.0.1", port=0, access_log=False, log_config=None)
        self._server = uvicorn.Server(config)
        await self._server.serve()

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self._server is not None and self._server.started, 30)
        assert self._server is not None
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.should_exit = True
        self._thread.join(30)


@pytest.fixture
def facade(endpoint: PaidEndpoint, tmp_path: Path) -> Iterator[FacadeServer]:
    with FacadeServer(tmp_path, endpoint.url) as server:
        yield server


@pytest.fixture
def speak(facade: FacadeServer) -> Iterator[Callable[..., openai.OpenAI]]:
    """A client of OpenAI with one of the keys."""
    opened = []

    def connect(key: str = "key-a") -> openai.OpenAI:
        client = openai.OpenAI(base_url=f"{facade.url}/v1", api_key=key, max_retries=0)
        opened.append(client)
        return client

    yield connect
    for client in opened:
        client.close()


@pytest.fixture
def http(facade: FacadeServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=facade.url, headers={"Authorization": "Bearer key-a"}, trust_env=False) as client:
        yield client


def sent(endpoint: PaidEndpoint) -> dict[str, Any]:
    """The last payload that the endpoint was given."""
    payload: dict[str, Any] = endpoint.requests("run")[-1].body["input"]
    return payload


def ended(http: httpx.Client, video_id: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def is_over() -> bool:
        found.update(http.get(f"/v1/videos/{video_id}").raise_for_status().json())
        return found["status"] in ("completed", "failed")

    wait_until(is_over, 30)
    return found
