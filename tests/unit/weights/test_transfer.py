"""Bytes from the hub into a file: how often a failing hub is asked again, what is kept, what is logged."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils._http import close_session

from tests.kits.hub_server import Fault, HubServer
from worker.base.files import sha256_of
from worker.weights.hub.transfer import Abort, HubPatience, PartialFile, Retries, TransferProgress, receive

REPO, FILE = "org/name", "weights.safetensors"
CONTENT = bytes(range(256)) * 400


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        server.add(REPO, {FILE: CONTENT})
        yield server
        close_session()


def fetched(hub: HubServer, path: Path, *, size: int = len(CONTENT), retries: Retries | None = None) -> str:
    retries = retries if retries is not None else Retries(backoff_s=0.001)
    with TransferProgress("a file", size) as progress, PartialFile(path, size) as partial:
        url = hf_hub_url(REPO, FILE, endpoint=hub.url)
        receive(url, {}, partial, patience=HubPatience(Abort(None), retries), progress=progress)
        return partial.finish()


@pytest.mark.parametrize(("failures", "good"), [(5, True), (6, False)])
def test_five_failures_in_a_row_are_forgiven(hub: HubServer, tmp_path: Path, failures: int, good: bool) -> None:
    hub.faults.append(Fault("/resolve/", 503, times=failures))
    if good:
        assert fetched(hub, tmp_path / "x") == sha256_of(tmp_path / "x")
        assert (tmp_path / "x").read_bytes() == CONTENT
    else:
        with pytest.raises(HfHubHTTPError, match="503"):
            fetched(hub, tmp_path / "x")


def test_every_byte_that_was_received_makes_the_count_begin_anew(hub: HubServer, tmp_path: Path) -> None:
    hub.cuts[FILE] = [1000] * 5
    fetched(hub, tmp_path / "x", retries=Retries(count=1, backoff_s=0.001))
    assert [hit.start for hit in hub.gets(FILE)] == [0, 1000, 2000, 3000, 4000, 5000]


def test_a_hub_that_sends_the_whole_file_again_is_understood(hub: HubServer, tmp_path: Path) -> None:
    hub.ignore_range = True
    hub.cuts[FILE] = [1000, 500]
    fetched(hub, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert len(hub.gets(FILE)) == 3


def test_the_waits_double(caplog: pytest.LogCaptureFixture) -> None:
    patience = HubPatience(Abort(None), Retries(backoff_s=0.02))
    started = time.monotonic()
    for _ in range(4):
        patience.pause(httpx2.ConnectError("refused"))
    assert 0.3 <= time.monotonic() - started < 1.2
    assert [record.message.split(";")[0] for record in caplog.records] == ["the hub failed (ConnectError)"] * 4


def asking_to_wait(value: str) -> HfHubHTTPError:
    request = httpx2.Request("GET", "http://hub.example")
    return HfHubHTTPError("busy", response=httpx2.Response(429, headers={"Retry-After": value}, request=request))


@pytest.mark.parametrize(
    ("value", "at_least_s"),
    [("1", 0.2), ("3600", 0.2), ("soon", 0.0), ("-1", 0.0), ("Wed, 21 Oct 2037 07:28:00 GMT", 0.0)],
)
def test_retry_after_counts_up_to_its_bound(value: str, at_least_s: float) -> None:
    started = time.monotonic()
    HubPatience(Abort(None), Retries(backoff_s=0.0, max_retry_after_s=0.2)).pause(asking_to_wait(value))
    assert at_least_s <= time.monotonic() - started < at_least_s + 0.8


def test_what_the_hub_may_ask_for_by_default() -> None:
    assert Retries() == Retries(count=5, backoff_s=1.0, max_retry_after_s=60.0)


def test_bytes_beyond_the_announced_size_are_not_kept(hub: HubServer, tmp_path: Path) -> None:
    fetched(hub, tmp_path / "x", size=70_000)
    assert (tmp_path / "x").read_bytes() == CONTENT[:70_000]


@pytest.mark.parametrize(("kept", "start"), [(0, 0), (40_000, 40_000), (len(CONTENT) + 1, 0)])
def test_what_is_stored_already_is_not_fetched_again(hub: HubServer, tmp_path: Path, kept: int, start: int) -> None:
    (tmp_path / "x").write_bytes((CONTENT + b"more")[:kept])
    assert fetched(hub, tmp_path / "x") == sha256_of(tmp_path / "x")
    assert [hit.start for hit in hub.gets(FILE)] == [start]
    assert (tmp_path / "x").read_bytes() == CONTENT


@pytest.mark.parametrize(("every_s", "lines"), [(0.0, ["50%", "100%"]), (60.0, [])])
def test_progress_is_logged(caplog: pytest.LogCaptureFixture, every_s: float, lines: list[str]) -> None:
    seen: list[tuple[int, int]] = []
    with caplog.at_level(logging.INFO, logger="worker"):
        on_bytes = lambda done, total: seen.append((done, total))  # noqa: E731
        with TransferProgress("downloading X", 20_000_000, on_bytes, log_every_s=every_s) as progress:
            progress.add(10_000_000)
            progress.add(10_000_000, received=True)
    assert [record.message.split("(")[1].split(")")[0] for record in caplog.records] == lines
    assert all(record.message.startswith("downloading X: 0.0") for record in caplog.records)
    assert seen == [(10_000_000, 20_000_000), (20_000_000, 20_000_000)]
