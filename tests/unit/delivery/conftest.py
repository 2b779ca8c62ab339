"""What tests of several stores of a delivery share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.kits.delivery import KEY, MIB, make_video
from tests.kits.s3_double import BUCKET, Double, serving
from tests.kits.spool_kit import Place
from tests.kits.webhooks import Scene
from worker.delivery.storage.base import Delivery
from worker.delivery.storage.spaces import SpacesStorage
from worker.delivery.storage.spaces_client import make_client
from worker.delivery.storage.spaces_place import place_of


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    """Runs something beside the test, which waits for the end of it."""
    with ThreadPoolExecutor() as pool:
        yield pool


@pytest.fixture
def double() -> Iterator[Double]:
    with serving() as running:
        yield running


@pytest.fixture
def open_double(double: Double) -> Iterator[Callable[..., SpacesStorage]]:
    """Opens the storage of the double, in parts of 1 MiB."""
    with ExitStack() as stack:

        def opened(attempts: int = 3, read_timeout_s: float = 20, **options: Any) -> SpacesStorage:
            place = place_of(double.endpoint_url, BUCKET)
            client = make_client(
                place, "key", "secret", total_max_attempts=attempts, connect_timeout_s=5, read_timeout_s=read_timeout_s
            )
            stack.callback(client.close)
            return SpacesStorage(client, place, multipart_threshold_bytes=MIB, part_bytes=MIB, **options)

        yield opened


@pytest.fixture
def store(open_double: Callable[..., SpacesStorage], tmp_path: Path) -> Callable[..., Delivery]:
    """Stores a video in the double."""

    def stored(content: bytes = b"video bytes", poster: bytes | None = None, **options: Any) -> Delivery:
        return open_double(**options).store(make_video(tmp_path, content, poster), KEY)

    return stored
