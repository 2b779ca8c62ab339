"""The doctor on volumes, weights, disks and STATE_DIR: each failure gives its line and its advice."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.kits.doctor_kit import deployment
from tests.kits.tiny_repo import tiny_repos
from tests.kits.weights_kit import ENCODER, I2V, SHARD, flip
from worker.base import locks
from worker.doctor import disks, weights
from worker.doctor.disks import Folder
from worker.doctor.report import Finding
from worker.weights import ModelFolder
from worker.weights.ensure import ensure


@pytest.fixture(autouse=True)
def real_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_PROFILE", "wan2.2")


@pytest.fixture
def on_volume(tmp_path: Path) -> Path:
    """The tiny I2V model in MODEL_CACHE_DIR, put there by hand."""
    place = tmp_path / "models" / I2V.replace("/", "--")
    shutil.copytree(tiny_repos() / "i2v", place)
    return place


def recorded(place: Path) -> ModelFolder:
    """As after the first start of a worker, which notes sizes and samples."""
    return ensure(I2V, cache_dir=place.parent, token=None, runpod_cache=place / "none")


def folder(path: str, *names: str, mounted: bool = False, exists: bool = True) -> Folder:
    return Folder(Path(path), exists=exists, mounted=mounted, names=names)


def judge(*places: Folder, cache: Folder, needed: bool = True) -> Finding:
    return disks.judge_volume(places, cache, folder("/cached", exists=False), needed=needed)


def test_the_volumes_are_listed() -> None:
    found = judge(
        folder("/workspace", exists=False),
        folder("/runpod-volume", "models", "state", mounted=True),
        cache=folder("/runpod-volume/models", *(f"model-{number}" for number in range(10))),
    )
    assert found.status == "OK"
    assert "/workspace is not there; /runpod-volume (a mounted volume) holds models, state;" in found.found
    assert "MODEL_CACHE_DIR is /runpod-volume/models and holds model-0," in found.found
    assert found.found.endswith("model-7 and 2 more")


@pytest.mark.parametrize(("needed", "status"), [(True, "WARN"), (False, "OK")])
def test_a_platform_without_a_volume_is_a_warning(needed: bool, status: str) -> None:
    found = judge(folder("/workspace", exists=False), cache=folder("/root/.cache/models", exists=False), needed=needed)
    assert found.status == status
    assert ("attach a network volume" in found.advice) == needed


def test_a_folder_of_the_image_that_hides_the_volume_is_a_warning() -> None:
    found = judge(
        folder("/workspace"), folder("/runpod-volume", "models", mounted=True), cache=folder("/workspace/models")
    )
    assert found.status == "WARN"
    assert "MODEL_CACHE_DIR is not on the volume, which is mounted at /runpod-volume" in found.found
    assert found.advice == "set MODEL_CACHE_DIR to /runpod-volume/models"


@pytest.mark.parametrize("mounted", [True, False])
def test_weights_that_the_image_carries_need_no_volume(mounted: bool) -> None:
    found = judge(folder("/runpod-volume", mounted=mounted), cache=folder("/models", "Wan-AI--X"))
    assert found.status == "OK"


def test_the_cached_models_of_runpod_are_listed(tmp_path: Path) -> None:
    (tmp_path / "runpod-volume" / "huggingface-cache" / "hub" / "models--Wan-AI--X").mkdir(parents=True)
    found = disks.check_volume(deployment(tmp_path, "H100 80GB"))
    assert "RunPod's cached models: holds models--Wan-AI--X" in found.found


def test_folders_are_looked_at_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / ".hidden").mkdir()
    assert disks.look_at(tmp_path) == Folder(tmp_path, exists=True, mounted=False, names=("a", "b"))
    assert disks.look_at(tmp_path / "a") == Folder(tmp_path / "a", exists=False, mounted=False, names=())
    assert disks.look_at(Path("/proc")).mounted


def test_weights_that_are_there_and_whole(tmp_path: Path, on_volume: Path) -> None:
    recorded(on_volume)
    found = weights.check(deployment(tmp_path, "H100 80GB"), "i2v")
    assert found.status == "OK"
    assert str(on_volume) in found.found
    assert "every byte: python -m worker.doctor --verify-weights" in found.found
    assert weights.verify(deployment(tmp_path, "H100 80GB"), "i2v").status == "OK"


@pytest.mark.parametrize(
    ("preload", "when"), [("i2v", "as the worker starts"), ("none", "during the first job that asks for it")]
)
def test_missing_weights_are_a_warning_with_what_their_download_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preload: str, when: str
) -> None:
    monkeypatch.setenv("PRELOAD", preload)
    found = weights.check(deployment(tmp_path, "H100 80GB"), "i2v")
    assert found.status == "WARN"
    assert f"{I2V} is not there: about 126 GB are downloaded {when}; without HF_TOKEN" in found.found
    assert "python -m builder.prepare --model i2v --dtype bf16" in found.advice
    monkeypatch.setenv("HF_TOKEN", "hf_1234567890")
    assert "HF_TOKEN" not in weights.check(deployment(tmp_path, "H100 80GB"), "i2v").found


@pytest.mark.parametrize("preload", ["i2v", "none"])
def test_missing_weights_that_cannot_be_downloaded_are_fatal_for_a_model_of_preload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preload: str
) -> None:
    monkeypatch.setenv("PRELOAD", preload)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = weights.check_presence(deployment(tmp_path, "H100 80GB"), "i2v")
    assert (found.status, found.stops_jobs) == ("FAIL", preload == "i2v")
    assert "unset HF_HUB_OFFLINE" in found.advice


def test_a_local_folder_that_is_no_model_is_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("I2V_MODEL_ID", str(tmp_path / "nothing"))
    found = weights.check(deployment(tmp_path, "H100 80GB"), "i2v")
    assert (found.status, found.stops_jobs) == ("FAIL", True)
    assert "correct I2V_MODEL_ID" in found.advice


def test_an_unfinished_download_is_a_warning(tmp_path: Path, on_volume: Path) -> None:
    record = recorded(on_volume).path / "videogen.json"
    record.write_text(record.read_text().replace('"complete": true', '"complete": false'))
    found = weights.check(deployment(tmp_path, "H100 80GB"), "i2v")
    assert found.status == "WARN"
    assert "a download of" in found.found
    assert "it goes on when a worker needs it" in found.advice


def test_truncated_missing_and_changed_weights_are_named(tmp_path: Path, on_volume: Path) -> None:
    recorded(on_volume)
    os.truncate(on_volume / SHARD, 1000)
    (on_volume / ENCODER).unlink()
    found = weights.check(deployment(tmp_path, "H100 80GB"), "i2v")
    assert (found.status, found.stops_jobs) == ("FAIL", False)  # a worker mends it
    assert SHARD in found.found
    assert f"{ENCODER}: it is missing" in found.found
    assert "a worker with access to the hub mends it" in found.advice


def test_a_byte_between_the_samples_is_found_by_reading_every_byte(tmp_path: Path) -> None:
    """The hub client's own layout names the hash of each file, so that it is known without a record."""
    place = tmp_path / "models" / ("models--" + I2V.replace("/", "--")) / "snapshots" / "abc"
    shutil.copytree(tiny_repos() / "i2v", place)
    (place / "README.md").unlink()
    content = (place / SHARD).read_bytes()
    blob = tmp_path / "models" / hashlib.sha256(content).hexdigest()
    blob.write_bytes(content)
    (place / SHARD).unlink()
    (place / SHARD).symlink_to(blob)
    flip(blob, len(content) // 2)
    looked_at = deployment(tmp_path, "H100 80GB")
    assert weights.check(looked_at, "i2v").status == "OK"
    found = weights.verify(looked_at, "i2v")
    assert found.status == "FAIL"
    assert f"{SHARD}: the content is not what the hub has" in found.found


def test_damage_in_an_own_folder_is_for_its_owner_to_mend(
    tmp_path: Path, on_volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("I2V_MODEL_ID", str(on_volume))
    os.truncate(on_volume / SHARD, 1000)
    found = weights.check(deployment(tmp_path, "H100 80GB"), "i2v")
    assert found.status == "FAIL"
    assert "put these files there again" in found.advice


def test_a_large_model_as_published_is_a_warning(
    tmp_path: Path, on_volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_PREPARED_LESS_THAN_BYTES", 1000)
    found = weights.check(deployment(tmp_path, "H100 80GB"), "i2v")
    assert found.status == "WARN"
    assert "--dtype bf16 --replace" in found.advice


def test_the_demo_model_needs_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_PROFILE", "demo")
    for check in (weights.check, weights.check_presence, weights.verify):
        assert check(deployment(tmp_path), "i2v").status == "OK"
    assert disks.check_models(deployment(tmp_path)).status == "OK"


def test_disks_take_a_file_and_keep_nothing(tmp_path: Path) -> None:
    found = disks.check_temporary(deployment(tmp_path))
    assert found.status in ("OK", "WARN")  # by the free space of this machine
    assert "MB/s" in found.found
    assert disks.check_models(deployment(tmp_path)).found.startswith(
        f"MODEL_CACHE_DIR {tmp_path / 'models'} (to be made in {tmp_path}) takes"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_nearly_full_container_disk_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for share, status in ((0.11, "OK"), (0.09, "WARN")):
        usage = shutil._ntuple_diskusage(1000, 1000 - round(1000 * share), round(1000 * share))
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
        assert disks.check_temporary(deployment(tmp_path)).status == status


@pytest.mark.parametrize(("age_s", "goes"), [(3540.0, False), (3660.0, True)])
def test_the_probe_of_a_worker_that_was_killed_goes_after_an_hour(tmp_path: Path, age_s: float, goes: bool) -> None:
    left, other = tmp_path / ".doctor-killed", tmp_path / "notes"
    for path in (left, other):
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age_s,) * 2)
    disks.write_probe(tmp_path, 16)
    assert left.exists() != goes
    assert [path.name for path in tmp_path.iterdir() if path != left] == ["notes"]


def test_a_temporary_folder_that_is_gone_is_fatal(tmp_path: Path) -> None:
    found = disks.check_temporary(deployment(tmp_path, temporary=Path("/proc/self")))
    assert (found.status, found.stops_jobs) == ("FAIL", True)
    assert "set TMPDIR to another" in found.advice


@pytest.mark.parametrize("call", ["fsync", "write"])
@pytest.mark.parametrize(
    ("number", "found", "advice"),
    [
        (errno.EDQUOT, "has used up its quota", "df does not show a quota"),
        (errno.ENOSPC, "is full", "free space"),
        (errno.EROFS, "is read-only", "mount it writable"),
        (errno.EACCES, "may not be written to", "give the worker's user permission"),
        (errno.EIO, "input/output error", "use another one"),
        (errno.ESTALE, "cannot be used (ESTALE)", "check the folder"),
    ],
)
def test_what_a_disk_answers_is_translated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, found: str, advice: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "refused")

    if call == "fsync":  # where a network volume tells that a quota is used up
        monkeypatch.setattr(os, "fsync", refuse)
    else:
        monkeypatch.setattr(disks.tempfile, "mkstemp", refuse)
    finding = disks.check_models(deployment(tmp_path, "H100 80GB"))
    assert finding.status == "FAIL"
    assert found in finding.found
    assert advice in finding.advice
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_volume_is_a_warning_where_the_weights_are_there(
    tmp_path: Path, on_volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "refused")

    monkeypatch.setattr(disks.tempfile, "mkstemp", refuse)
    found = disks.check_models(deployment(tmp_path, "H100 80GB"))
    assert found.status == "WARN"
    assert "is read-only: the models of PRELOAD are there" in found.found


def test_a_state_folder_that_works_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    found = disks.check_state(deployment(tmp_path))
    assert (found.status, found.found) == ("OK", f"{tmp_path / 'state'} takes files, and its locks hold")
    assert list((tmp_path / "state").iterdir()) == []


def test_a_state_folder_that_is_a_file_or_read_only_is_a_failure_that_stops_no_job(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for place, reason in ((tmp_path / "file", "is not a folder"), (Path("/proc/state"), "")):
        found = disks.check_state(deployment(tmp_path, state=place))
        assert (found.status, found.stops_jobs) == ("FAIL", False)
        assert f"STATE_DIR {place} {reason}" in found.found
        assert "set STATE_DIR to another folder" in found.advice


def test_locks_that_do_not_hold_are_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    found = disks.check_state(deployment(tmp_path))
    assert found.status == "FAIL"
    assert "locks do not hold" in found.found
    assert "has file locks" in found.advice


def test_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert disks.check_shared_memory(tmp_path).status == "OK"
    missing = disks.check_shared_memory(tmp_path / "missing")
    assert missing.status == "WARN"
    assert "--shm-size" in missing.advice
    monkeypatch.setattr(disks, "_SHARED_MEMORY_BYTES", 10**18)
    assert disks.check_shared_memory(tmp_path).status == "WARN"
