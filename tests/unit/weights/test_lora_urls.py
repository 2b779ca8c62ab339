"""LoRA files behind URLs: fetched once, asked for again in time, judged before they are kept."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from tests.kits.lora_store import PATH, content_of, kept, sha256, store_in, tensors
from worker.base.errors import Cancelled, InputBlocked, InputFailed, InputInvalid
from worker.net import Opener
from worker.weights.loras import LoraStore
from worker.weights.loras import store as loras


def test_a_url_is_fetched_once_and_kept_by_its_hash(store: LoraStore, home: Path, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/files/my%20style.bin").respond_with_data(tensors(1))
    httpserver.expect_request("/files/my style.bin").respond_with_data(tensors(1))
    url = httpserver.url_for("/files/my%20style.bin?X-Signature=secret")
    found = [store.fetch(url, path=PATH) for _ in range(2)]
    assert content_of(found[0]) == tensors(1)
    assert found[0] == found[1]
    assert found[0].name == "my_style.bin"
    assert len(httpserver.log) == 1
    assert kept(home) == [f"{sha256(tensors(1))}.safetensors"]
    assert found[0].path.parent == home / ".cache"
    for file in (home / ".cache").iterdir():
        assert b"secret" not in file.read_bytes()
        assert "secret" not in file.name


def test_another_worker_of_the_volume_finds_it(home: Path, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/a").respond_with_data(tensors(1))
    first = store_in(home).fetch(httpserver.url_for("/a"), path=PATH)
    assert store_in(home).fetch(httpserver.url_for("/a"), path=PATH) == first
    assert len(httpserver.log) == 1


def test_a_url_is_asked_again_once_it_is_no_longer_fresh(store: LoraStore, home: Path, httpserver: HTTPServer) -> None:
    url = httpserver.url_for("/a")
    httpserver.expect_ordered_request("/a").respond_with_data(tensors(1))
    httpserver.expect_ordered_request("/a").respond_with_data(tensors(2))
    store.fetch(url, path=PATH)
    aged(home, loras.URL_FRESH_S - 60)
    assert content_of(store.fetch(url, path=PATH)) == tensors(1)
    aged(home, loras.URL_FRESH_S + 60)
    assert content_of(store.fetch(url, path=PATH)) == tensors(2)
    assert len(kept(home)) == 2


def aged(home: Path, seconds: float) -> None:
    for note in (home / ".cache").glob("*.source"):
        os.utime(note, (time.time() - seconds, time.time() - seconds))


def test_two_urls_of_the_same_content_share_a_file(store: LoraStore, home: Path, httpserver: HTTPServer) -> None:
    for name in ("/a", "/b"):
        httpserver.expect_request(name).respond_with_data(tensors(1))
    one, two = (store.fetch(httpserver.url_for(name), path=PATH) for name in ("/a", "/b"))
    assert one.path == two.path
    assert len(kept(home)) == 1


def test_a_damaged_copy_is_fetched_again(home: Path, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/a").respond_with_data(tensors(1))
    file = store_in(home).fetch(httpserver.url_for("/a"), path=PATH).path
    file.write_bytes(tensors(2))
    assert content_of(store_in(home).fetch(httpserver.url_for("/a"), path=PATH)) == tensors(1)
    assert len(httpserver.log) == 2


@pytest.mark.parametrize(
    ("body", "what"),
    [(b"PK\x03\x04" + bytes(50), "pickle"), (b"<html>", "web page"), (tensors()[:-1], "damaged"), (b"", "beginning")],
)
def test_what_is_no_safetensors_file_is_not_kept(
    store: LoraStore, home: Path, httpserver: HTTPServer, body: bytes, what: str
) -> None:
    httpserver.expect_request("/style.safetensors").respond_with_data(body)
    with pytest.raises(InputInvalid, match=what) as caught:
        store.fetch(httpserver.url_for("/style.safetensors"), path=PATH)
    assert caught.value.path == PATH
    assert list((home / ".cache").iterdir()) == []


def test_a_pickle_is_refused_and_a_safetensors_file_taken_whatever_their_names(
    store: LoraStore, httpserver: HTTPServer
) -> None:
    httpserver.expect_request("/style.ckpt").respond_with_data(tensors(1))
    assert content_of(store.fetch(httpserver.url_for("/style.ckpt"), path=PATH)) == tensors(1)


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1/a.safetensors", "file:///etc/passwd", "s3://bucket/a", "C:\\a.safetensors"]
)
def test_a_url_that_may_not_be_fetched_is_blocked(store: LoraStore, url: str) -> None:
    with pytest.raises(InputBlocked) as caught:
        store.fetch(url, path=PATH)
    assert caught.value.path == PATH


def test_a_url_that_the_cache_knows_is_judged_again(home: Path, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/a").respond_with_data(tensors(1))
    url = f"http://127.0.0.1:{httpserver.port}/a"
    store_in(home).fetch(url, path=PATH)
    with pytest.raises(InputBlocked):
        LoraStore(home.parent, Opener(), token=None).fetch(url, path=PATH)


def test_a_server_that_fails_is_a_failed_input(store: LoraStore, home: Path, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/a").respond_with_data("no", status=404)
    with pytest.raises(InputFailed, match="404"):
        store.fetch(httpserver.url_for("/a"), path=PATH)
    assert kept(home) == []


def test_a_stop_ends_a_download(store: LoraStore, home: Path, httpserver: HTTPServer) -> None:
    stop, asked = threading.Event(), threading.Event()

    def slow(_: Request) -> Response:
        asked.set()
        return Response((b"x" for _ in iter(lambda: time.sleep(0.02), 1)), headers={"Content-Length": "1000000"})

    httpserver.expect_request("/a").respond_with_handler(slow)
    threading.Thread(target=lambda: (asked.wait(10), stop.set())).start()
    with pytest.raises(Cancelled):
        store.fetch(httpserver.url_for("/a"), path=PATH, stop=stop)
    assert list((home / ".cache").iterdir()) == []


def test_nothing_of_a_signed_url_is_logged(
    store: LoraStore, home: Path, httpserver: HTTPServer, caplog: pytest.LogCaptureFixture
) -> None:
    httpserver.expect_request("/a.safetensors").respond_with_data(tensors(1))
    with caplog.at_level(logging.DEBUG, logger="worker"):
        store.fetch(httpserver.url_for("/a.safetensors?token=s3cret"), path=PATH)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("worker")]
    assert any("a.safetensors" in line for line in lines)
    assert not any("s3cret" in line or str(home) in line for line in lines)
