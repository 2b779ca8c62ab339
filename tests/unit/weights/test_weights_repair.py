from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from tests.kits.hub_server import HubServer
from tests.kits.slow import slow
from tests.kits.tiny_repo import tiny_repos
from tests.kits.weights_kit import ENCODER, I2V, SHARD, T2V, VAE, flip, get
from worker.base.errors import ModelUnavailable
from worker.weights import ModelFolder, check, verify
from worker.weights.folder import record as records


@pytest.mark.parametrize("harm", ["flipped bit", *slow("missing", "zero-filled tail", "truncated")])
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


def test_a_shared_file_is_recorded_before_another_download_may_look_for_it(
    hub: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the record takes to be written, such as on a slow volume."""
    write = records.write

    def slow(folder: Path, record: records.Record) -> None:
        if ENCODER in record.files and not record.complete:
            time.sleep(0.05)
        write(folder, record)

    monkeypatch.setattr(records, "write", slow)
    threads = [threading.Thread(target=get, args=(hub, cache, repo)) for repo in (I2V, T2V)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(hub.gets(file)) for file in (ENCODER, VAE)] == [1, 1]


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
