"""The cache of LoRA files: what is removed, and a disk that cannot be written."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer

from tests.kits.lora_store import PATH, content_of, kept, store_in, tensors
from worker.base.errors import ModelUnavailable
from worker.weights.loras import LoraStore, cache


def test_the_least_recently_used_files_go(home: Path, httpserver: HTTPServer) -> None:
    for number in range(12):
        httpserver.expect_request(f"/{number}").respond_with_data(tensors(number, size=100))
    store = store_in(home, max_cache_bytes=7 * len(tensors(0, size=100)))
    found = [store.fetch(httpserver.url_for(f"/{number}"), path=PATH) for number in range(11)]
    assert len(kept(home)) == 11  # a job may still be about to read any of them
    hour_ago = time.time() - cache.KEEP_S
    for file, age_s in zip(found, (999, 5, 80, 10, 70, 20, 60, 30, 50, 40, 90), strict=True):
        os.utime(file.path, (hour_ago - age_s, file.path.stat().st_mtime))
    store.fetch(httpserver.url_for("/0"), path=PATH)
    newest = store.fetch(httpserver.url_for("/11"), path=PATH)
    left = [found[0], newest, *(found[number] for number in (1, 3, 5, 7, 9))]
    assert kept(home) == sorted(f"{file.sha256}.safetensors" for file in left)
    assert content_of(store.fetch(httpserver.url_for("/2"), path=PATH)) == tensors(2, size=100)


def test_nothing_goes_while_there_is_room(home: Path, httpserver: HTTPServer) -> None:
    for number in range(2):
        httpserver.expect_request(f"/{number}").respond_with_data(tensors(number))
    store = store_in(home, max_cache_bytes=2 * len(tensors()))
    found = store.fetch(httpserver.url_for("/0"), path=PATH)
    os.utime(found.path, (0, found.path.stat().st_mtime))
    store.fetch(httpserver.url_for("/1"), path=PATH)
    assert len(kept(home)) == 2


def test_what_a_killed_worker_left_is_removed(store: LoraStore, home: Path, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/a").respond_with_data(tensors())
    (home / ".cache").mkdir()
    old, young = home / ".cache" / ".x.part.y.part", home / ".cache" / "z.part"
    for file in (old, young):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - cache.KEEP_S - 60,) * 2)
    store.fetch(httpserver.url_for("/a"), path=PATH)
    assert not old.exists()
    assert young.exists()


def test_files_of_the_operator_are_never_removed(home: Path, httpserver: HTTPServer) -> None:
    (home / "mine.safetensors").write_bytes(tensors(9))
    os.utime(home / "mine.safetensors", (0, 0))
    httpserver.expect_request("/a").respond_with_data(tensors())
    store_in(home, max_cache_bytes=1).fetch(httpserver.url_for("/a"), path=PATH)
    assert (home / "mine.safetensors").exists()


def test_a_cache_that_cannot_be_written_is_replaced_by_a_temporary_one(
    home: Path, httpserver: HTTPServer, caplog: pytest.LogCaptureFixture
) -> None:
    (home / ".cache").write_bytes(b"in the way")
    httpserver.expect_request("/a").respond_with_data(tensors(1))
    store = store_in(home)
    with caplog.at_level(logging.WARNING):
        found = [store.fetch(httpserver.url_for("/a"), path=PATH) for _ in range(2)]
    assert content_of(found[0]) == tensors(1)
    assert found[0] == found[1]
    assert not found[0].path.is_relative_to(home)
    assert len([record for record in caplog.records if "a temporary folder is used" in record.message]) == 1


def test_a_disk_that_is_full_everywhere_is_said(
    home: Path, httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    httpserver.expect_request("/a").respond_with_data(tensors(1))
    (home / ".cache").write_bytes(b"in the way")
    monkeypatch.setattr("tempfile.tempdir", str(home / "gone"))
    with pytest.raises(ModelUnavailable, match="no room") as caught:
        store_in(home).fetch(httpserver.url_for("/a"), path=PATH)
    assert caught.value.path == PATH
    assert str(home) not in str(caught.value)
