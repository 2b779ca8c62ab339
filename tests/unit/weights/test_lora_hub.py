"""LoRA files on the hub: tokens, new versions, and a hub that fails."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer

from tests.kits.hub_server import GOOD_TOKEN, OTHER_TOKEN, Fault, HubServer
from tests.kits.lora_store import PATH, REPO, content_of, kept, store_in, tensors
from tests.kits.lora_store import hub as hub  # a fixture
from worker.base.errors import InputInvalid, ModelUnavailable, Unsupported


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


def test_a_hub_that_cannot_be_reached_is_unavailable(home: Path, unused_tcp_port: int) -> None:
    with pytest.raises(ModelUnavailable, match="cannot be reached"):
        store_in(home, endpoint=f"http://127.0.0.1:{unused_tcp_port}").fetch(
            f"{REPO}/style/high.safetensors", path=PATH
        )


def test_bytes_that_are_not_the_hubs_are_refused(home: Path, hub: HubServer) -> None:
    hub.flips["style/high.safetensors"] = 1
    with pytest.raises(ModelUnavailable, match="damaged"):
        store_in(home, endpoint=hub.url).fetch(f"{REPO}/style/high.safetensors", path=PATH)
    assert kept(home) == []


def test_a_small_file_of_the_hub_that_is_no_lora_is_refused(home: Path, hub: HubServer) -> None:
    with pytest.raises(InputInvalid, match="not a safetensors file"):
        store_in(home, endpoint=hub.url).fetch(f"{REPO}/README.md", path=PATH)
