"""Workers as processes on one volume: started at once, killed, on a full and on a read-only disk."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kits.hub_server import HubServer
from tests.kits.slow import slow
from tests.kits.tiny_repo import tiny_repos
from worker.weights import check, verify
from worker.weights.folder import check as integrity
from worker.weights.folder import record as records

REPO = "Wan-AI/Wan2.2-I2V-A14B-Diffusers"
ROOT = Path(__file__).parents[2]
# Waits for `go` once everything is imported, so that several processes begin together.
WORKER = """
import json, logging, sys, time
from pathlib import Path
import huggingface_hub.hf_api
from worker.base.errors import ModelUnavailable
from worker.weights import ModelCache
from worker.weights.ensure import ensure
logging.basicConfig(level="WARNING")
logging.getLogger("worker").setLevel("INFO")
cache, runpod, go = map(Path, sys.argv[1:])
while not go.exists():
    time.sleep(0.01)
try:
    folder = ensure(ModelCache(cache, runpod), "Wan-AI/Wan2.2-I2V-A14B")
    print(json.dumps({"path": str(folder.path), "source": folder.source}))
except ModelUnavailable as failure:
    print(json.dumps({"error": str(failure)}))
"""


started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _none_is_left() -> Iterator[None]:
    yield
    for process in started:
        process.kill()
        process.communicate()
    started.clear()


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        server.add(REPO, tiny_repos() / "i2v")
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    (tmp_path / "go").touch()
    return tmp_path / "models"


def start(hub: HubServer, cache: Path, *wrapper: str) -> subprocess.Popen[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(cache.parent / "hf-home"),
    }
    arguments = [sys.executable, "-c", WORKER, str(cache), str(cache.parent / "runpod"), str(cache.parent / "go")]
    process = subprocess.Popen(
        [*wrapper, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    started.append(process)
    return process


def outcome(process: subprocess.Popen[str]) -> tuple[dict[str, str], str]:
    out, log = process.communicate(timeout=180)
    assert process.returncode == 0, log
    return json.loads(out), log


def total_bytes(hub: HubServer) -> int:
    files = hub.repos[REPO].files
    return sum(len(files[path].content) for path in integrity.wanted(files))


@pytest.mark.slow
def test_three_workers_on_an_empty_volume_download_once(hub: HubServer, cache: Path) -> None:
    hub.bytes_per_s = 4_000_000
    (cache.parent / "go").unlink()
    processes = [start(hub, cache) for _ in range(3)]
    time.sleep(1.5)
    (cache.parent / "go").touch()
    results = [outcome(process) for process in processes]
    assert len({result["path"] for result, _ in results}) == 1
    assert sorted(result["source"] for result, _ in results) == ["cache", "cache", "hub"]
    assert hub.bytes_sent == total_bytes(hub)
    assert sum(f"another worker is downloading {REPO}; waiting" in log for _, log in results) == 2
    assert sum(f"downloading {REPO} at " in log for _, log in results) == 1
    assert verify(Path(results[0][0]["path"])) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_downloader_killed_at_four_moments_is_continued_by_the_next(hub: HubServer, cache: Path) -> None:
    hub.bytes_per_s = 4_000_000
    moments = random.Random()
    for _ in range(4):
        process = start(hub, cache)
        hub.wait_for_bytes(hub.bytes_sent + moments.randint(1, 400_000))
        process.kill()
        process.communicate()
        assert process.returncode == -9
    result, _ = outcome(start(hub, cache))
    assert result["source"] == "hub"
    folder = Path(result["path"])
    assert verify(folder) == []
    assert list(cache.rglob("*.incomplete")) == []
    for path, blob in hub.repos[REPO].files.items():
        if path in integrity.wanted([path]):
            assert (folder / path).read_bytes() == blob.content
    assert max(hit.start for hit in hub.gets()) > 0
    # The kills cost what was on its way, not what had arrived.
    assert hub.bytes_sent < 1.6 * total_bytes(hub)


def test_a_waiting_worker_takes_over_from_a_killed_one(hub: HubServer, cache: Path) -> None:
    hub.bytes_per_s = 2_000_000
    first = start(hub, cache)
    hub.wait_for_bytes(100_000)
    second = start(hub, cache)
    hub.wait_for_bytes(1_500_000)
    first.kill()
    first.communicate()
    hub.bytes_per_s = None
    result, _ = outcome(second)
    assert result["source"] == "hub"
    assert verify(Path(result["path"])) == []


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["flipped bit", "truncated shard", "stale incomplete"])
def test_damage_between_two_starts_is_caught_and_mended(hub: HubServer, cache: Path, harm: str) -> None:
    folder = Path(outcome(start(hub, cache))[0]["path"])
    name = "transformer/diffusion_pytorch_model-00002-of-00006.safetensors"
    shard = folder / name
    content = shard.read_bytes()
    if harm == "flipped bit":
        shard.write_bytes(content[:-5] + bytes([content[-5] ^ 4]) + content[-4:])
    elif harm == "truncated shard":
        shard.write_bytes(content[:-9000])
    else:
        record = records.read(folder)
        assert record is not None
        blob = hub.repos[REPO].files[name]
        shard.unlink()
        shard.with_name(f"{shard.name}.{blob.sha256[:16]}.incomplete").write_bytes(b"x" * (len(content) - 1))
    assert check(folder) != []
    result, log = outcome(start(hub, cache))
    assert name in log
    assert Path(result["path"]) == folder
    assert verify(folder) == []
    assert shard.read_bytes() == content
    assert list(cache.rglob("*.incomplete")) == []


def mounted(cache: Path, options: str) -> tuple[str, ...]:
    """A wrapper that runs a command where `cache` is a mount of its own; skips where that is not allowed."""
    cache.mkdir(parents=True, exist_ok=True)
    wrapper = ("unshare", "--map-root-user", "--mount", "sh", "-c", f'mount {options} "$0" && exec "$@"', str(cache))
    if shutil.which("unshare") is None or subprocess.run([*wrapper, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let a process mount anything")
    return wrapper


@pytest.mark.slow
def test_a_full_disk_is_told(hub: HubServer, cache: Path) -> None:
    result, _ = outcome(start(hub, cache, *mounted(cache, "-t tmpfs -o size=3m tmpfs")))
    assert result["error"].startswith(f"{REPO}: MODEL_CACHE_DIR is full: ")
    assert str(cache) not in result["error"]


@pytest.mark.slow
def test_an_empty_read_only_volume_is_told(hub: HubServer, cache: Path) -> None:
    result, _ = outcome(start(hub, cache, *mounted(cache, "-t tmpfs -o ro tmpfs")))
    assert result["error"].startswith(f"{REPO}: MODEL_CACHE_DIR is read-only: ")
    assert hub.hits == []


@pytest.mark.parametrize("recorded", [True, *slow(False)])
def test_a_model_on_a_read_only_volume_serves(hub: HubServer, cache: Path, recorded: bool) -> None:
    plain = cache / "Wan2.2-I2V-A14B-Diffusers"
    shutil.copytree(tiny_repos() / "i2v", plain)
    if recorded:
        records.write(plain, integrity.make_record(plain, repo=REPO, revision=None))
    bind = '--bind "$0" "$0" && mount -o remount,bind,ro'
    result, _ = outcome(start(hub, cache, *mounted(cache, bind)))
    assert result == {"path": str(plain), "source": "cache"}
    assert hub.hits == []
    assert (plain / records.RECORD_NAME).exists() == recorded
