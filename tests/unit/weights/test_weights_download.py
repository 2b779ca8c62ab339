from __future__ import annotations

import io
import json
import logging
import os
import threading
import time
from pathlib import Path

import pytest

from tests.kits.hub_server import GOOD_TOKEN, HubServer
from tests.kits.slow import slow
from tests.kits.tiny_repo import tiny_repos
from tests.kits.weights_kit import I2V, SHARD, get
from worker.base import log
from worker.base.errors import Cancelled, ModelUnavailable
from worker.weights import ModelFolder, verify
from worker.weights.folder import record as records


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


@pytest.mark.parametrize("harm", ["zeros", *slow("flipped bit", "too long")])
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


def test_what_the_threads_of_a_download_log_carries_the_job_that_asked(hub: HubServer, cache: Path) -> None:
    hub.flips = {SHARD: 1, "vae/config.json": 1}
    stream = io.StringIO()
    handlers = list(logging.getLogger().handlers)
    log.configure(layout="json", stream=stream)
    try:
        with log.job_scope("job-1"):
            get(hub, cache)
    finally:
        logging.getLogger().handlers[:] = handlers
        for name in ("worker", "handler"):
            logging.getLogger(name).setLevel(logging.NOTSET)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert sum("fetched again" in line["message"] for line in lines) == 2
    assert {line.get("job_id") for line in lines} == {"job-1"}


def test_bytes_damaged_twice_stop_the_download_and_name_the_file(hub: HubServer, cache: Path) -> None:
    hub.flips = {SHARD: 2}
    with pytest.raises(ModelUnavailable, match=f"{SHARD} arrived damaged twice"):
        get(hub, cache)
    folder = cache / "Wan-AI--Wan2.2-I2V-A14B-Diffusers" / hub.repos[I2V].commit
    assert not (folder / SHARD).exists()
    assert verify(get(hub, cache).path) == []


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
