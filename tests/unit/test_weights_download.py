from __future__ import annotations

import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, snapshot_download
from huggingface_hub.utils._http import close_session

from tests.hub_server import GOOD_TOKEN, OTHER_TOKEN, Fault, HubServer
from tests.tiny_repo import tiny_repos
from worker.errors import Cancelled, ModelUnavailable
from worker.weights import ModelFolder, check, ensure, transfer, verify
from worker.weights import record as records

I2V = "Wan-AI/Wan2.2-I2V-A14B-Diffusers"
T2V = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
SHARD = "transformer/diffusion_pytorch_model-00003-of-00006.safetensors"
ENCODER = "text_encoder/model-00001-of-00002.safetensors"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(transfer, "BACKOFF_S", 0.01)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
    with HubServer() as server:
        server.add(I2V, tiny_repos() / "i2v")
        server.add(T2V, tiny_repos() / "t2v")
        server.add("Wan-AI/Wan2.2-I2V-A14B", tiny_repos() / "original")
        yield server
        close_session()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "models"


def get(hub: HubServer, cache: Path, model_id: str = I2V, **options: Any) -> ModelFolder:
    options = {"endpoint": hub.url, "runpod_cache": cache.parent / "runpod", "token": None, **options}
    return ensure(model_id, cache_dir=cache, **options)


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_what_a_pipeline_needs_is_downloaded_verified_and_recorded(hub: HubServer, cache: Path) -> None:
    seen: list[tuple[int, int]] = []
    folder = get(hub, cache, on_bytes=lambda done, total: seen.append((done, total)))
    commit = hub.repos[I2V].commit
    assert folder == ModelFolder(cache / "Wan-AI--Wan2.2-I2V-A14B-Diffusers" / commit, I2V, commit, "hub")
    served = {path for path in hub.repos[I2V].files if not path.startswith("assets/") and path != "README.md"}
    there = {path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*") if path.is_file()}
    assert there == served | {records.RECORD_NAME}
    assert verify(folder.path) == []
    record = records.read(folder.path)
    assert record is not None
    assert record.complete
    assert record.revision == commit
    assert {path: entry.sha256 for path, entry in record.files.items()} == {
        path: hub.repos[I2V].files[path].sha256 for path in served
    }
    total = sum(len(hub.repos[I2V].files[path].content) for path in served)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_the_second_start_asks_the_hub_nothing(hub: HubServer, cache: Path) -> None:
    first = get(hub, cache)
    hub.hits.clear()
    again = get(hub, cache)
    assert (again.path, again.source) == (first.path, "cache")
    assert hub.hits == []


def test_an_original_id_downloads_its_twin(hub: HubServer, cache: Path) -> None:
    assert get(hub, cache, "Wan-AI/Wan2.2-I2V-A14B").repo == I2V


def test_a_repository_in_another_format_is_refused_with_advice(hub: HubServer, cache: Path) -> None:
    hub.add("someone/Original", tiny_repos() / "original")
    with pytest.raises(ModelUnavailable, match=r"not in Diffusers' format.*-Diffusers"):
        get(hub, cache, "someone/Original")


def test_a_revision_is_pinned_and_kept(hub: HubServer, cache: Path) -> None:
    commit = hub.repos[I2V].commit
    folder = get(hub, cache, revision="main")
    record = records.read(folder.path)
    assert record is not None
    assert (record.revision, record.requested) == (commit, "main")
    hub.add(I2V, tiny_repos() / "t2v")
    assert get(hub, cache).revision == commit
    assert get(hub, cache, revision="main").revision == commit
    newer = get(hub, cache, revision=hub.repos[I2V].commit)
    assert newer.revision == hub.repos[I2V].commit != commit


def test_the_token_goes_to_the_hub_and_never_to_the_store_behind_it(hub: HubServer, cache: Path) -> None:
    hub.add(I2V, tiny_repos() / "i2v", gated=True)
    get(hub, cache, token=GOOD_TOKEN)
    told = {hit.authorization for hit in hub.hits if "/cdn/" not in hit.path}
    assert told == {f"Bearer {GOOD_TOKEN}"}
    assert {hit.authorization for hit in hub.hits if "/cdn/" in hit.path} == {None}


@pytest.mark.parametrize("range_is_ignored", [False, True])
def test_a_connection_that_breaks_is_continued(hub: HubServer, cache: Path, range_is_ignored: bool) -> None:
    hub.ignore_range = range_is_ignored
    hub.cuts[SHARD] = [100_000, 50_000]
    folder = get(hub, cache)
    assert verify(folder.path) == []
    starts = [hit.start for hit in hub.gets(SHARD)]
    assert len(starts) == 3
    if not range_is_ignored:
        assert starts == [0, 100_000, 150_000]


def test_a_partial_file_of_an_earlier_worker_is_continued(hub: HubServer, cache: Path) -> None:
    content = hub.repos[I2V].files[SHARD]
    target = cache / "Wan-AI--Wan2.2-I2V-A14B-Diffusers" / hub.repos[I2V].commit / SHARD
    target.parent.mkdir(parents=True)
    partial = target.with_name(f"{target.name}.{content.sha256[:16]}.incomplete")
    partial.write_bytes(content.content[:123_456])
    get(hub, cache)
    assert [hit.start for hit in hub.gets(SHARD)] == [123_456]
    assert target.read_bytes() == content.content
    assert not partial.exists()


@pytest.mark.parametrize("harm", ["flipped bit", "zeros", "too long"])
def test_a_damaged_partial_file_is_caught_and_fetched_whole(hub: HubServer, cache: Path, harm: str) -> None:
    blob = hub.repos[I2V].files[SHARD]
    target = cache / "Wan-AI--Wan2.2-I2V-A14B-Diffusers" / hub.repos[I2V].commit / SHARD
    target.parent.mkdir(parents=True)
    partial = target.with_name(f"{target.name}.{blob.sha256[:16]}.incomplete")
    content = bytearray(blob.content)
    if harm == "flipped bit":
        content[1000] ^= 1
        del content[200_000:]
    elif harm == "zeros":
        content[300_000:] = bytes(len(content) - 300_000)
    else:
        content += b"more"
    partial.write_bytes(content)
    folder = get(hub, cache)
    assert (folder.path / SHARD).read_bytes() == blob.content
    assert hub.gets(SHARD)[-1].start == 0


def test_stale_partial_files_are_swept(hub: HubServer, cache: Path) -> None:
    home = cache / "Wan-AI--Wan2.2-I2V-A14B-Diffusers" / hub.repos[I2V].commit
    blobs = cache / "models--Wan-AI--Wan2.2-I2V-A14B-Diffusers" / "blobs"
    (home / "transformer").mkdir(parents=True)
    blobs.mkdir(parents=True)
    stale = [home / f"{SHARD}.0123456789abcdef.incomplete", home / "x.incomplete", blobs / "old.incomplete"]
    fresh = blobs / "in-use.incomplete"
    for path in (*stale, fresh):
        path.write_bytes(b"stale")
    os.utime(blobs / "old.incomplete", (time.time() - 4000, time.time() - 4000))
    get(hub, cache)
    assert [path for path in stale if path.exists()] == []
    assert fresh.exists()


def test_an_unfinished_download_of_another_revision_is_deleted(hub: HubServer, cache: Path) -> None:
    old = cache / "Wan-AI--Wan2.2-I2V-A14B-Diffusers" / ("a" * 40)
    old.mkdir(parents=True)
    records.write(old, records.Record(I2V, "a" * 40, complete=False))
    folder = get(hub, cache)
    assert not old.exists()
    assert folder.path.exists()


def test_bytes_damaged_on_the_way_are_fetched_again(
    hub: HubServer, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.flips = {SHARD: 1, "vae/config.json": 1}
    with caplog.at_level(logging.WARNING, logger="worker"):
        folder = get(hub, cache)
    assert verify(folder.path) == []
    assert {record.message for record in caplog.records} == {
        f"{SHARD} of {I2V} arrived damaged; it is fetched again",
        f"vae/config.json of {I2V} arrived damaged; it is fetched again",
    }


def test_bytes_damaged_twice_stop_the_download_and_name_the_file(hub: HubServer, cache: Path) -> None:
    hub.flips = {SHARD: 2}
    with pytest.raises(ModelUnavailable, match=f"{SHARD} arrived damaged twice"):
        get(hub, cache)
    folder = cache / "Wan-AI--Wan2.2-I2V-A14B-Diffusers" / hub.repos[I2V].commit
    assert not (folder / SHARD).exists()
    assert verify(get(hub, cache).path) == []


@pytest.mark.parametrize("harm", ["flipped bit", "zero-filled tail", "truncated", "missing"])
def test_a_file_damaged_on_the_volume_is_set_aside_and_fetched_again(
    hub: HubServer, cache: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = get(hub, cache).path / SHARD
    size = path.stat().st_size
    if harm == "flipped bit":
        flip(path, size // 2)
    elif harm == "missing":
        path.unlink()
    else:
        os.truncate(path, size - 70_000)
        if harm == "zero-filled tail":
            os.truncate(path, size)
    hub.hits.clear()
    with caplog.at_level(logging.WARNING, logger="worker"):
        folder = get(hub, cache)
    assert verify(folder.path) == []
    assert {hit.file for hit in hub.gets()} == {SHARD}
    assert any(SHARD in record.message for record in caplog.records)
    assert path.with_name(f"{path.name}.corrupt").exists() == (harm != "missing")


def test_the_shared_text_encoder_is_fetched_and_stored_once(hub: HubServer, cache: Path) -> None:
    i2v = get(hub, cache, I2V).path
    hub.hits.clear()
    t2v = get(hub, cache, T2V).path
    assert {hit.file.split("/")[0] for hit in hub.gets(".safetensors")} == {"transformer", "transformer_2"}
    assert (i2v / ENCODER).samefile(t2v / ENCODER)
    assert (i2v / "vae/diffusion_pytorch_model.safetensors").samefile(t2v / "vae/diffusion_pytorch_model.safetensors")
    assert verify(t2v) == []


def test_two_models_downloaded_at_once_fetch_the_shared_files_once(hub: HubServer, cache: Path) -> None:
    threads = [threading.Thread(target=get, args=(hub, cache, repo)) for repo in (I2V, T2V)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hub.gets(ENCODER)) == 1
    for repo in (I2V, T2V):
        assert check(get(hub, cache, repo).path) == []


def test_a_damaged_copy_is_not_shared(hub: HubServer, cache: Path) -> None:
    i2v = get(hub, cache, I2V).path
    flip(i2v / ENCODER, (i2v / ENCODER).stat().st_size // 2)
    t2v = get(hub, cache, T2V).path
    assert verify(t2v) == []
    assert check(i2v) != []
    # Now the other model has a whole copy: mending needs no download.
    hub.hits.clear()
    assert verify(get(hub, cache, I2V).path) == []
    assert hub.gets(ENCODER) == []


def test_damage_in_a_shared_file_is_mended_for_both_models(hub: HubServer, cache: Path) -> None:
    i2v, t2v = get(hub, cache, I2V).path, get(hub, cache, T2V).path
    with (i2v / ENCODER).open("r+b") as file:
        file.truncate(1000)
    assert check(i2v) != []
    assert check(t2v) != []
    assert verify(get(hub, cache, I2V).path) == []
    assert verify(get(hub, cache, T2V).path) == []


def test_a_copy_serves_where_the_volume_has_no_links(
    hub: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    i2v = get(hub, cache, I2V).path
    monkeypatch.setattr(os, "link", refuse)
    hub.hits.clear()
    t2v = get(hub, cache, T2V).path
    assert hub.gets(ENCODER) == []
    assert not (i2v / ENCODER).samefile(t2v / ENCODER)
    assert verify(t2v) == []


def test_what_the_earlier_worker_downloaded_serves_and_is_mended(hub: HubServer, cache: Path) -> None:
    snapshot = Path(snapshot_download(I2V, cache_dir=cache, endpoint=hub.url, ignore_patterns=["transformer_2/*"]))
    hub.hits.clear()
    folder = get(hub, cache)
    assert folder == ModelFolder(snapshot, I2V, hub.repos[I2V].commit, "hub")
    assert {hit.file.split("/")[0] for hit in hub.gets()} == {"transformer_2"}
    assert get(hub, cache).source == "cache"
    blob = (snapshot / SHARD).resolve()
    flip(blob, blob.stat().st_size // 2)
    assert verify(get(hub, cache).path) == []
    assert blob.with_name(f"{blob.name}.corrupt").exists()


def test_a_plain_folder_is_recorded_and_mended_in_place(hub: HubServer, cache: Path) -> None:
    plain = cache / "Wan2.2-I2V-A14B-Diffusers"
    shutil.copytree(tiny_repos() / "i2v", plain)
    assert get(hub, cache) == ModelFolder(plain, I2V, None, "cache")
    assert (plain / records.RECORD_NAME).exists()
    assert hub.hits == []
    flip(plain / SHARD, 300_000)
    assert get(hub, cache).path == plain
    assert {hit.file for hit in hub.gets()} == {SHARD}
    assert verify(plain) == []


def test_a_damaged_cached_model_of_runpod_is_passed_over(hub: HubServer, cache: Path, tmp_path: Path) -> None:
    runpod = tmp_path / "runpod"
    snapshot = Path(snapshot_download(I2V, cache_dir=runpod, endpoint=hub.url))
    hub.hits.clear()
    assert get(hub, cache) == ModelFolder(snapshot, I2V, hub.repos[I2V].commit, "runpod")
    assert hub.hits == []
    damaged = (snapshot / SHARD).resolve()
    damaged.write_bytes(b"")
    folder = get(hub, cache)
    assert folder.source == "hub"
    assert folder.path.is_relative_to(cache)
    assert damaged.read_bytes() == b""
    # What is whole there is taken from there.
    assert {hit.file for hit in hub.gets(".safetensors")} == {SHARD}


def test_damaged_prepared_weights_give_way_to_the_originals(hub: HubServer, cache: Path) -> None:
    original = get(hub, cache).path
    record = records.read(original)
    assert record is not None
    prepared = original.with_name(f"{original.name}-bf16")
    shutil.copytree(original, prepared)
    records.write(prepared, records.Record(I2V, original.name, dtype="bf16", files=record.files))
    assert get(hub, cache).path == prepared
    os.truncate(prepared / SHARD, 1000)
    assert get(hub, cache).path == original
    os.truncate(original / SHARD, 1000)
    assert get(hub, cache).path == original
    assert not prepared.exists()
    assert prepared.with_name(f"{prepared.name}.corrupt").exists()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("nowhere", "names a folder that does not exist"),
        ("no index", "not in Diffusers' format"),
        ("truncated", f"mine is damaged: {SHARD}: "),
    ],
)
def test_a_folder_given_by_path_is_checked_and_never_downloaded(
    hub: HubServer, cache: Path, tmp_path: Path, harm: str, message: str
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(tiny_repos() / "i2v", folder)
    assert get(hub, cache, str(folder)).source == "local"
    if harm == "nowhere":
        shutil.rmtree(folder)
    elif harm == "no index":
        (folder / "model_index.json").unlink()
    else:
        os.truncate(folder / SHARD, 1000)
    with pytest.raises(ModelUnavailable, match=message) as caught:
        get(hub, cache, str(folder))
    assert str(tmp_path) not in str(caught.value)
    assert hub.hits == []


def test_stop_ends_a_download_and_the_next_continues_it(hub: HubServer, cache: Path) -> None:
    hub.bytes_per_s = 2_000_000
    stop = threading.Event()

    def stop_at_a_million(done: int, total: int) -> None:
        if done > 1_000_000:
            stop.set()

    with pytest.raises(Cancelled):
        get(hub, cache, stop=stop, on_bytes=stop_at_a_million)
    hub.bytes_per_s = None
    hub.bytes_sent = 0
    folder = get(hub, cache)
    total = sum(len(blob.content) for blob in hub.repos[I2V].files.values())
    assert hub.bytes_sent < total - 700_000
    assert verify(folder.path) == []


def test_progress_is_logged(
    hub: HubServer, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PROGRESS_LOG_S", 0.0)
    with caplog.at_level(logging.INFO, logger="worker"):
        get(hub, cache)
    lines = [record.message for record in caplog.records if record.name == "worker.weights.transfer"]
    assert lines[-1].startswith(f"downloading {I2V}: 0.01 of 0.01 GB (100%), ")


@pytest.mark.parametrize("status", [429, 500, 502, 503])
@pytest.mark.parametrize("where", ["/api/models/", SHARD])
def test_a_hub_that_fails_for_a_while_is_asked_again(hub: HubServer, cache: Path, status: int, where: str) -> None:
    hub.faults.append(Fault(where, status, times=transfer.RETRIES))
    assert verify(get(hub, cache).path) == []


def test_retry_after_is_honoured(hub: HubServer, cache: Path) -> None:
    hub.faults.append(Fault("/api/models/", 429, times=1, headers={"Retry-After": "1"}))
    started = time.monotonic()
    get(hub, cache)
    assert time.monotonic() - started >= 1


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
@pytest.mark.parametrize("where", ["/api/models/", SHARD])
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
