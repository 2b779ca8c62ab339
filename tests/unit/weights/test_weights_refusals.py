from __future__ import annotations

import socket
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.kits.hub_server import GOOD_TOKEN, OTHER_TOKEN, Fault, HubServer
from tests.kits.slow import slow
from tests.kits.tiny_repo import tiny_repos
from tests.kits.weights_kit import I2V, SHARD, get
from worker.base.errors import ModelUnavailable
from worker.weights import verify


@pytest.mark.parametrize("status", [429, 503, *slow(500, 502)])
def test_a_hub_that_fails_for_a_while_is_asked_again(hub: HubServer, cache: Path, status: int) -> None:
    hub.faults += [Fault("/api/models/", status, times=5), Fault(SHARD, status, times=5)]
    assert verify(get(hub, cache).path) == []


LICENCE = f"set HF_TOKEN to a token that has accepted the licence of {I2V}"


@pytest.mark.parametrize(
    ("kind", "token", "message"),
    [
        ("gated", None, f"the model is gated: {LICENCE}"),
        ("gated", OTHER_TOKEN, f"the model is gated: {LICENCE}"),
        ("gated", "hf_wrong", "the hub refuses HF_TOKEN (401): set it to a valid token"),
        (
            "private",
            None,
            "the hub has no such model (401): correct the model id, or set HF_TOKEN if the model is private",
        ),
        ("private", OTHER_TOKEN, "the hub has no such model (404): correct the model id"),
        (
            "absent",
            None,
            "the hub has no such model (401): correct the model id, or set HF_TOKEN if the model is private",
        ),
        (403, GOOD_TOKEN, f"the hub forbids the download (403): {LICENCE} and has read permission"),
        (404, None, "the hub has no such model (404): correct the model id, or set HF_TOKEN if the model is private"),
        (429, None, "the hub limits the rate of downloads (429): set HF_TOKEN, or wait some minutes, "),
        (429, GOOD_TOKEN, "the hub limits the rate of downloads (429): wait some minutes, "),
        (500, None, "the hub is failing (500): try again later"),
        (503, None, "the hub is failing (503): try again later"),
        (418, None, "the hub refused the download (418): "),
    ],
)
@pytest.mark.parametrize("where", ["/api/models/", *slow(SHARD)])
def test_every_refusal_of_the_hub_is_one_clear_error(
    hub: HubServer, cache: Path, kind: str | int, token: str | None, message: str, where: str
) -> None:
    if kind == "absent":
        del hub.repos[I2V]
    elif isinstance(kind, str):
        hub.add(I2V, tiny_repos() / "i2v", gated=kind == "gated", private=kind == "private")
    else:
        hub.faults.append(Fault(where, kind))
    with pytest.raises(ModelUnavailable) as caught:
        get(hub, cache, token=token)
    assert str(caught.value).startswith(f"{I2V}: {message}")
    assert "was looked for in: MODEL_CACHE_DIR (" in str(caught.value)
    assert "RunPod's cached models (does not exist)" in str(caught.value)
    assert str(cache.parent) not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)


def test_a_revision_that_the_hub_has_not_is_told(hub: HubServer, cache: Path) -> None:
    with pytest.raises(ModelUnavailable, match="does not have the revision that was asked for"):
        get(hub, cache, revision="f" * 40)


def test_a_listed_file_that_is_gone_is_told(hub: HubServer, cache: Path) -> None:
    hub.faults.append(Fault("vae/config.json", 404, headers={"X-Error-Code": "EntryNotFound"}))
    with pytest.raises(ModelUnavailable, match="lists a file that it does not have"):
        get(hub, cache)


def test_a_path_that_leaves_the_folder_is_refused(hub: HubServer, cache: Path) -> None:
    hub.add("evil/model", {"model_index.json": b"{}", "vae/../../../outside.safetensors": b"x"})
    with pytest.raises(ModelUnavailable, match="in a way that cannot be used"):
        get(hub, cache, "evil/model")
    assert not (cache.parent / "outside.safetensors").exists()


@pytest.mark.parametrize(
    ("model_id", "message"),
    [("not a model id", "write it as ORGANISATION/NAME"), ("a/b/c", "write it as ORGANISATION/NAME")],
)
def test_an_invalid_model_id_is_told(hub: HubServer, cache: Path, model_id: str, message: str) -> None:
    with pytest.raises(ModelUnavailable, match=message):
        get(hub, cache, model_id)


def test_no_network_is_told(hub: HubServer, cache: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(ModelUnavailable, match="the hub cannot be reached: check the network"):
            get(hub, cache, endpoint=address)


def test_a_silent_hub_is_told(hub: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ModelUnavailable, match="the hub did not answer in time"):
            get(hub, cache, endpoint=address)


def test_a_wrong_address_of_the_hub_is_told(hub: HubServer, cache: Path) -> None:
    with pytest.raises(ModelUnavailable, match="correct or unset HF_ENDPOINT"):
        get(hub, cache, endpoint="ftp://hub.example")


def test_offline_mode_is_told(hub: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailable, match="HF_HUB_OFFLINE is set"):
        get(hub, cache)
