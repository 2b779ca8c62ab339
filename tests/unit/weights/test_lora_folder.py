"""LoRA files in the operator's folder, sources of no known form, and the size of what is fetched."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer

from tests.kits.hub_server import HubServer
from tests.kits.lora_store import PATH, REPO, content_of, sha256, store_in, tensors
from tests.kits.lora_store import hub as hub  # a fixture
from worker.base.errors import InputFailed, InputInvalid, InvalidRequest, Unsupported
from worker.base.settings import Settings
from worker.net import Opener
from worker.net.opener import LORA_LIMITS
from worker.weights.loras import LoraStore
from worker.weights.loras import store as loras


def test_no_gpu_library_is_loaded() -> None:
    heavy = "('torch', 'diffusers', 'peft')"
    code = f"import sys, worker.weights.loras.store; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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
