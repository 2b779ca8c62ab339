"""Where a LoRA comes from: URLs, the hub and the operator's folder; and what is kept of it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils._http import close_session
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from tests.kits.hub_server import GOOD_TOKEN, OTHER_TOKEN, Fault, HubServer
from worker.base.errors import (
    Cancelled,
    InputBlocked,
    InputFailed,
    InputInvalid,
    InvalidRequest,
    ModelUnavailable,
    Unsupported,
)
from worker.base.settings import Settings
from worker.net import Opener
from worker.net.opener import LORA_LIMITS
from worker.weights.hub.transfer import Retries
from worker.weights.loras import LoraFile, LoraStore, cache
from worker.weights.loras import store as loras

PATH = "job_request_params[0].loras[1].source"
REPO = "someone/wan-styles"


def tensors(fill: int = 0, size: int = 4) -> bytes:
    """A small safetensors file; its content follows from `fill`."""
    text = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(text)) + text + bytes([fill]) * size


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The operator's folder of LoRAs."""
    folder = tmp_path / "models" / "loras"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def store(home: Path) -> LoraStore:
    return store_in(home)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
    with HubServer() as server:
        server.add(REPO, {"style/high.safetensors": tensors(1), "README.md": b"# styles"})
        yield server
        close_session()


def store_in(home: Path, **options: object) -> LoraStore:
    options = {"token": None, "retries": Retries(backoff_s=0.01), **options}
    return LoraStore(home.parent, Opener(("127.0.0.1",)), **options)  # type: ignore[arg-type]


def content_of(found: LoraFile) -> bytes:
    content = found.path.read_bytes()
    assert sha256(content) == found.sha256
    return content


def kept(home: Path) -> list[str]:
    return sorted(path.name for path in (home / ".cache").glob("*.safetensors"))


def test_no_gpu_library_is_loaded() -> None:
    heavy = "('torch', 'diffusers', 'peft')"
    code = f"import sys, worker.weights.loras.store; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The operator's folder


def test_a_file_of_the_operator_is_used_where_it_lies(store: LoraStore, home: Path) -> None:
    (home / "my style.safetensors").write_bytes(tensors(3))
    found = store.fetch("my style.safetensors", path=PATH)
    assert found.path == home / "my style.safetensors"
    assert content_of(found) == tensors(3)
    assert found.name == "my_style.safetensors"


def test_a_file_that_was_replaced_has_its_new_hash(store: LoraStore, home: Path) -> None:
    file = home / "a.safetensors"
    file.write_bytes(tensors(1))
    store.fetch("a.safetensors", path=PATH)
    file.write_bytes(tensors(2, size=8))
    assert store.fetch("a.safetensors", path=PATH).sha256 == sha256(tensors(2, size=8))


def test_a_file_that_is_not_there_is_unsupported_and_those_there_are_named(store: LoraStore, home: Path) -> None:
    for number in range(12):
        (home / f"style-{number:02}.safetensors").write_bytes(tensors())
    with pytest.raises(Unsupported, match=r"style-00\.safetensors.* and 2 more") as caught:
        store.fetch("other.safetensors", path=PATH)
    assert caught.value.path == PATH
    assert str(home) not in str(caught.value)


def test_without_a_folder_there_are_no_local_files(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="it has none"):
        store_in(tmp_path / "missing" / "loras").fetch("a.safetensors", path=PATH)


@pytest.mark.parametrize(
    "name",
    ["..", ".", "", ".hidden.safetensors", ".cache", "folder", "..\\secret.safetensors", "a\x00.safetensors", "*"],
)
def test_only_plain_visible_files_have_names(store: LoraStore, home: Path, name: str) -> None:
    (home / ".hidden.safetensors").write_bytes(tensors())
    (home / "folder").mkdir()
    (home.parent / "secret.safetensors").write_bytes(tensors())
    with pytest.raises(Unsupported):
        store.fetch(name, path=PATH)


@pytest.mark.parametrize(
    "source",
    [
        "/etc/passwd",
        "../secret.safetensors",
        "./a.safetensors",
        "loras/a.safetensors",
        "a/b/../../secret.safetensors",
        "someone/repo/./a.safetensors",
        "someone/repo//a.safetensors",
        "someone/repo/",
        "~/a.safetensors",
        "a/b\\c/d",
        "someone/re po/a.safetensors",
        "someone/repo/a\n.safetensors",
    ],
)
def test_a_source_of_no_known_form_is_invalid_and_says_what_to_send(home: Path, hub: HubServer, source: str) -> None:
    (home.parent / "secret.safetensors").write_bytes(tensors())
    with pytest.raises(InvalidRequest, match=r"OWNER/REPO/FILE\.safetensors") as caught:
        store_in(home, endpoint=hub.url).fetch(source, path=PATH)
    assert caught.value.path == PATH
    assert hub.hits == []


@pytest.mark.parametrize("number", range(3))
def test_the_files_of_svi_are_a_whole_pair_of_the_operators(store: LoraStore, home: Path, number: int) -> None:
    for high, low in loras.SVI[number:]:
        (home / high).write_bytes(tensors(1))
        (home / low).write_bytes(tensors(2))
    (home / loras.SVI[0][0]).write_bytes(tensors(1))  # half of a pair where number is not 0
    assert tuple(file.path.name for file in store.svi(path=PATH)) == loras.SVI[number]


def test_where_svi_has_no_files_the_error_says_which_are_looked_for(store: LoraStore, home: Path) -> None:
    for high, _ in loras.SVI:
        (home / high).write_bytes(tensors())
    with pytest.raises(Unsupported) as caught:
        store.svi(path="continuity")
    assert caught.value.path == "continuity"
    assert all(name in caught.value.message for pair in loras.SVI for name in pair)


def test_a_link_may_not_lead_out_of_the_folder(store: LoraStore, home: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(tensors())
    (home / "inside.safetensors").write_bytes(tensors(5))
    (home / "out.safetensors").symlink_to(outside)
    (home / "in.safetensors").symlink_to(home / "inside.safetensors")
    (home / "dangling.safetensors").symlink_to(home / "gone")
    assert content_of(store.fetch("in.safetensors", path=PATH)) == tensors(5)
    for name in ("out.safetensors", "dangling.safetensors"):
        with pytest.raises(Unsupported):
            store.fetch(name, path=PATH)


def test_a_pickle_of_the_operator_is_refused_too(store: LoraStore, home: Path) -> None:
    (home / "a.safetensors").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(InputInvalid, match="pickle"):
        store.fetch("a.safetensors", path=PATH)


@pytest.mark.parametrize("beyond", [0, 1])
@pytest.mark.parametrize("kind", ["folder", "url", "hub"])
def test_the_size_of_what_is_fetched_is_bounded(
    home: Path, hub: HubServer, httpserver: HTTPServer, kind: str, beyond: int
) -> None:
    (home / "a.safetensors").write_bytes(tensors())
    hub.add(REPO, {"a.safetensors": tensors()})
    httpserver.expect_request("/a").respond_with_data(tensors())
    source = {"folder": "a.safetensors", "url": httpserver.url_for("/a"), "hub": f"{REPO}/a.safetensors"}[kind]
    store = store_in(home, endpoint=hub.url, limits=replace(LORA_LIMITS, max_bytes=len(tensors()) - beyond))
    if beyond and kind != "folder":  # what the operator put there may have any size
        with pytest.raises(InputFailed, match="larger than"):
            store.fetch(source, path=PATH)
        assert hub.gets() == []
    else:
        assert store.fetch(source, path=PATH).sha256 == sha256(tensors())


@pytest.mark.parametrize(("size", "read"), [(len(tensors()), True), (len(tensors()) - 1, False)])
def test_the_operator_sets_the_size_of_what_is_fetched(
    home: Path, httpserver: HTTPServer, size: int, read: bool
) -> None:
    httpserver.expect_request("/a").respond_with_data(tensors())
    store = LoraStore.of(Settings(model_cache_dir=home.parent, lora_max_bytes=size), Opener(("127.0.0.1",)))
    with nullcontext() if read else pytest.raises(InputFailed, match="larger than"):
        store.fetch(httpserver.url_for("/a"), path=PATH)


# URLs


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


# The hub


def test_a_file_of_the_hub_is_fetched_once(home: Path, hub: HubServer) -> None:
    store = store_in(home, endpoint=hub.url)
    found = [store.fetch(f"{REPO}/style/high.safetensors", path=PATH) for _ in range(2)]
    assert content_of(found[0]) == tensors(1)
    assert found[0] == found[1]
    assert found[0].name == "high.safetensors"
    assert len(hub.gets("high.safetensors")) == 1


def test_a_new_version_on_the_hub_is_fetched(home: Path, hub: HubServer) -> None:
    store = store_in(home, endpoint=hub.url)
    store.fetch(f"{REPO}/style/high.safetensors", path=PATH)
    hub.add(REPO, {"style/high.safetensors": tensors(2)})
    assert content_of(store.fetch(f"{REPO}/style/high.safetensors", path=PATH)) == tensors(2)


def test_what_the_hub_has_and_a_url_gave_already_is_not_fetched_again(
    home: Path, hub: HubServer, httpserver: HTTPServer
) -> None:
    httpserver.expect_request("/a").respond_with_data(tensors(1))
    store = store_in(home, endpoint=hub.url)
    store.fetch(httpserver.url_for("/a"), path=PATH)
    store.fetch(f"{REPO}/style/high.safetensors", path=PATH)
    assert hub.gets("high.safetensors") == []


@pytest.mark.parametrize("source", [f"{REPO}/gone.safetensors", "nobody/nothing/a.safetensors", "a--b/c/d.safetensors"])
def test_what_the_hub_does_not_have_is_unsupported(home: Path, hub: HubServer, source: str) -> None:
    with pytest.raises(Unsupported, match="no such file") as caught:
        store_in(home, endpoint=hub.url).fetch(source, path=PATH)
    assert caught.value.path == PATH


@pytest.mark.parametrize("token", [None, OTHER_TOKEN])
def test_a_gated_repository_needs_a_token_that_has_access(home: Path, hub: HubServer, token: str | None) -> None:
    hub.add("someone/gated", {"a.safetensors": tensors(3)}, gated=True)
    with pytest.raises(Unsupported, match="HF_TOKEN"):
        store_in(home, endpoint=hub.url, token=token).fetch("someone/gated/a.safetensors", path=PATH)
    found = store_in(home, endpoint=hub.url, token=GOOD_TOKEN).fetch("someone/gated/a.safetensors", path=PATH)
    assert content_of(found) == tensors(3)


def test_the_token_stays_with_the_hub(home: Path, hub: HubServer) -> None:
    store_in(home, endpoint=hub.url, token=GOOD_TOKEN).fetch(f"{REPO}/style/high.safetensors", path=PATH)
    elsewhere = [hit for hit in hub.hits if hit.path.startswith("/cdn/")]
    assert elsewhere
    assert all(hit.authorization is None for hit in elsewhere)


def test_a_token_of_the_machine_is_not_used(home: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
    store_in(home, endpoint=hub.url).fetch(f"{REPO}/style/high.safetensors", path=PATH)
    assert {hit.authorization for hit in hub.hits} == {None}


def test_a_hub_that_fails_for_a_while_is_asked_again(home: Path, hub: HubServer) -> None:
    hub.faults.append(Fault("/resolve/", 503, times=2))
    hub.cuts["style/high.safetensors"] = [10]
    found = store_in(home, endpoint=hub.url).fetch(f"{REPO}/style/high.safetensors", path=PATH)
    assert content_of(found) == tensors(1)


def test_a_hub_that_fails_is_unavailable_unless_the_file_is_in_the_cache(
    home: Path, hub: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_in(home, endpoint=hub.url)
    hub.faults.append(Fault("/resolve/", 503))
    with pytest.raises(ModelUnavailable, match="503") as caught:
        store.fetch(f"{REPO}/style/high.safetensors", path=PATH)
    assert caught.value.path == PATH
    hub.faults.clear()
    store.fetch(f"{REPO}/style/high.safetensors", path=PATH)
    hub.faults.append(Fault("/resolve/", 503))
    with caplog.at_level(logging.WARNING):
        assert content_of(store.fetch(f"{REPO}/style/high.safetensors", path=PATH)) == tensors(1)
    assert "the copy in the cache is used" in caplog.text


def test_a_hub_that_cannot_be_reached_is_unavailable(home: Path, hub: HubServer, unused_port: int) -> None:
    with pytest.raises(ModelUnavailable, match="cannot be reached"):
        store_in(home, endpoint=f"http://127.0.0.1:{unused_port}").fetch(f"{REPO}/style/high.safetensors", path=PATH)


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_bytes_that_are_not_the_hubs_are_refused(home: Path, hub: HubServer) -> None:
    hub.flips["style/high.safetensors"] = 1
    with pytest.raises(ModelUnavailable, match="damaged"):
        store_in(home, endpoint=hub.url).fetch(f"{REPO}/style/high.safetensors", path=PATH)
    assert kept(home) == []


def test_a_small_file_of_the_hub_that_is_no_lora_is_refused(home: Path, hub: HubServer) -> None:
    with pytest.raises(InputInvalid, match="not a safetensors file"):
        store_in(home, endpoint=hub.url).fetch(f"{REPO}/README.md", path=PATH)


# The cache


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


def test_nothing_of_a_signed_url_is_logged(
    store: LoraStore, home: Path, httpserver: HTTPServer, caplog: pytest.LogCaptureFixture
) -> None:
    httpserver.expect_request("/a.safetensors").respond_with_data(tensors(1))
    with caplog.at_level(logging.DEBUG, logger="worker"):
        store.fetch(httpserver.url_for("/a.safetensors?token=s3cret"), path=PATH)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("worker")]
    assert any("a.safetensors" in line for line in lines)
    assert not any("s3cret" in line or str(home) in line for line in lines)
