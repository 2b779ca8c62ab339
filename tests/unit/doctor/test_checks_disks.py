"""The doctor on volumes, the model cache, disks, STATE_DIR and shared memory: a row for each finding and its advice."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kits.doctor_kit import H100, WAN, Patch, Row, copied, deployment
from worker.base import locks
from worker.doctor import disks
from worker.doctor.deployment import Deployment
from worker.doctor.disks import Folder
from worker.doctor.report import Finding


def cached(home: Path, _: Patch) -> None:
    (home / "runpod-volume" / "huggingface-cache" / "hub" / "models--Wan-AI--X").mkdir(parents=True)


def refused(number: int, call: str) -> Callable[[Path, Patch], None]:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "refused")

    def before(_: Path, patch: Patch) -> None:
        patch.setattr(*((os, "fsync") if call == "fsync" else (disks.tempfile, "mkstemp")), refuse)

    return before


def read_only(home: Path, patch: Patch) -> None:
    copied(home, patch)
    refused(errno.EROFS, "mkstemp")(home, patch)


def no_locks(_home: Path, patch: Patch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    patch.setattr(locks.fcntl, "flock", refuse)


def file_in_the_way(home: Path, _: Patch) -> None:
    (home / "state").write_bytes(b"")


def free(share: float) -> Callable[[Path, Patch], None]:
    usage = shutil._ntuple_diskusage(1000, 1000 - round(1000 * share), round(1000 * share))
    return lambda _home, patch: patch.setattr(shutil, "disk_usage", lambda _: usage)


def shared_memory(folder: str = "") -> Callable[[Deployment], Finding]:
    return lambda there: disks.check_shared_memory(there.temporary / folder)


# fmt: off
ROWS: dict[str, Row] = {
    "volume cached models": Row(disks.check_volume, "OK", "RunPod's cached models: holds models--Wan-AI--X", gpu=H100,
        before=cached),
    "models": Row(disks.check_models, "OK", "MODEL_CACHE_DIR {home}/models (to be made in {home}) takes", env=WAN),
    "models demo": Row(disks.check_models, "OK", "not needed"),
    **{
        f"models {errno.errorcode[number]} at {call}": Row(
            disks.check_models, "FAIL", found, advice, env=WAN, gpu=H100, before=refused(number, call)
        )
        # A network volume says at fsync that a quota is used up.
        for call in ("fsync", "mkstemp")
        for number, found, advice in (
            (errno.EDQUOT, "has used up its quota", "df does not show a quota"),
            (errno.ENOSPC, "is full", "free space"),
            (errno.EROFS, "is read-only", "mount it writable"),
            (errno.EACCES, "may not be written to", "give the worker's user permission"),
            (errno.EIO, "input/output error", "use another one"),
            (errno.ESTALE, "cannot be used (ESTALE)", "check the folder"),
        )
    },
    "models read-only with weights": Row(disks.check_models, "WARN", "is read-only: the models of PRELOAD are there",
        "mount it writable", env=WAN, gpu=H100, before=read_only),
    "disk free": Row(disks.check_temporary, "OK", "MB/s; 11% of the container's disk", before=free(0.11)),
    "disk nearly full": Row(disks.check_temporary, "WARN", "9% of the container's disk", "less than 10%",
        before=free(0.09)),
    "disk gone": Row(disks.check_temporary, "FAIL", "the temporary folder", "set TMPDIR to another", stops=True,
        given={"temporary": Path("/proc/self")}),
    "state": Row(disks.check_state, "OK", "{home}/state takes files, and its locks hold"),
    "state a file": Row(disks.check_state, "FAIL", "STATE_DIR {home}/state is not a folder",
        "set STATE_DIR to another folder", before=file_in_the_way),
    "state read-only": Row(disks.check_state, "FAIL", "STATE_DIR /proc/state ", "set STATE_DIR", given={"state":
        Path("/proc/state")}),
    "state without locks": Row(disks.check_state, "FAIL", "locks do not hold", "has file locks", before=no_locks),
    "shared memory": Row(shared_memory(), "OK", " MiB"),
    "shared memory missing": Row(shared_memory("missing"), "WARN", "missing", "--shm-size"),
    "shared memory small": Row(shared_memory(), "WARN", " MiB", "--shm-size", before=lambda _, patch:
        patch.setattr(disks, "_SHARED_MEMORY_BYTES", 10**18)),
}
# fmt: on


@pytest.mark.parametrize("name", ROWS)
def test_a_check_finds_and_advises(name: str, tmp_path: Path, monkeypatch: Patch) -> None:
    ROWS[name].holds(tmp_path, monkeypatch)


def folder(path: str, *names: str, mounted: bool = False, exists: bool = True) -> Folder:
    return Folder(Path(path), exists=exists, mounted=mounted, names=names)


NONE = folder("/workspace", exists=False)


@pytest.mark.parametrize(
    ("places", "cache", "needed", "found", "advice"),
    [
        (
            [NONE, folder("/runpod-volume", "models", "state", mounted=True)],
            folder("/runpod-volume/models", *(f"model-{number}" for number in range(10))),
            True,
            "/workspace is not there; /runpod-volume (a mounted volume) holds models, state; "
            "MODEL_CACHE_DIR is /runpod-volume/models and holds model-0,",
            "",
        ),
        ([NONE], folder("/runpod-volume/models", *map(str, range(10))), True, "7 and 2 more", ""),
        ([NONE], folder("/root/models", exists=False), True, "no volume is mounted", "attach a network volume"),
        ([NONE], folder("/root/models", exists=False), False, "/workspace is not there", ""),
        (
            [folder("/workspace"), folder("/runpod-volume", "models", mounted=True)],
            folder("/workspace/models"),
            True,
            "MODEL_CACHE_DIR is not on the volume, which is mounted at /runpod-volume",
            "set MODEL_CACHE_DIR to /runpod-volume/models",
        ),
        ([folder("/runpod-volume", mounted=True)], folder("/models", "Wan-AI--X"), True, "holds Wan-AI--X", ""),
        ([folder("/runpod-volume")], folder("/models", "Wan-AI--X"), True, "no mounted volume", ""),
    ],
    ids=["listed", "many", "none", "none needed", "hidden by the image", "weights in the image", "no mount"],
)
def test_what_the_volumes_are_like(places: list[Folder], cache: Folder, needed: bool, found: str, advice: str) -> None:
    finding = disks.judge_volume(places, cache, folder("/cached", exists=False), needed=needed)
    assert finding.status == ("WARN" if advice else "OK")
    assert found in finding.found
    assert advice in finding.advice


def test_folders_are_looked_at_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / ".hidden").mkdir()
    assert disks.look_at(tmp_path) == Folder(tmp_path, exists=True, mounted=False, names=("a", "b"))
    assert disks.look_at(tmp_path / "a") == Folder(tmp_path / "a", exists=False, mounted=False, names=())
    assert disks.look_at(Path("/proc")).mounted


@pytest.mark.parametrize(("age_s", "goes"), [(3540.0, False), (3660.0, True)])
def test_the_probe_of_a_worker_that_was_killed_goes_after_an_hour(tmp_path: Path, age_s: float, goes: bool) -> None:
    left, other = tmp_path / ".doctor-killed", tmp_path / "notes"
    for path in (left, other):
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age_s,) * 2)
    disks.write_probe(tmp_path, 16)
    assert left.exists() != goes
    assert [path.name for path in tmp_path.iterdir() if path != left] == ["notes"]


def test_the_state_folder_is_left_empty(tmp_path: Path) -> None:
    disks.check_state(deployment(tmp_path))
    assert list((tmp_path / "state").iterdir()) == []
