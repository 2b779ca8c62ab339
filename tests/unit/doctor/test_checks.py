"""Every check of the doctor but storage, hub and clock: a row each for what it finds and what it advises."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from standardwebhooks import Webhook

from tests.kits.doctor_kit import GIB, SECRET, deployment, device_of
from tests.kits.tiny_repo import tiny_repos
from tests.kits.weights_kit import ENCODER, I2V, SHARD, flip
from worker.base import locks
from worker.delivery.webhooks import envelopes
from worker.doctor import attention, disks, ffmpeg, gpu, plans, settings, weights
from worker.doctor.deployment import Deployment, Device, Driver, Host, driver, look, readable_settings
from worker.doctor.disks import Folder
from worker.doctor.report import Finding, Status
from worker.engine import device as planning
from worker.request.plan import Gpu, Planner, from_name
from worker.weights import ModelCache, ModelFolder
from worker.weights.ensure import ensure

PLATFORM = {"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:9/job-take/$ID"}
WAN = {"MODEL_PROFILE": "wan2.2"}
H100 = from_name("H100 80GB")
Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Row:
    """`before` arranges the folder that the deployment is in; `given` is what the deployment differs in.

    `{home}` in `found` and in the environment's values is that folder.
    """

    check: Callable[[Deployment], Finding]
    status: Status
    found: str
    advice: str = ""
    stops: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    gpu: Gpu | str | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    before: Callable[[Path, Patch], object] = lambda _home, _patch: None


def i2v(check: Callable[[Deployment, str], Finding]) -> Callable[[Deployment], Finding]:
    return lambda there: check(there, "i2v")


def hidden(device: Device, found: str, advice: str) -> Row:
    """Without a GPU on the platform the reason is found, and nothing starts."""
    return Row(gpu.check, "FAIL", found, advice, stops=True, env=PLATFORM, given={"device": device})


def unfit(device: Device, found: str, advice: str) -> Row:
    return Row(gpu.check, "FAIL", found, advice, stops=True, gpu=device.gpu, given={"device": device})


def in_use(used: int) -> dict[str, Any]:
    return {"device": device_of(H100, free_bytes=H100.vram_bytes - used)}


def copied(home: Path, _: Patch) -> Path:
    """The tiny I2V model in MODEL_CACHE_DIR, put there by hand."""
    place = home / "models" / I2V.replace("/", "--")
    shutil.copytree(tiny_repos() / "i2v", place)
    return place


def recorded(home: Path, patch: Patch) -> ModelFolder:
    """As after the first start of a worker, which notes sizes and samples."""
    place = copied(home, patch)
    return ensure(ModelCache(place.parent, place / "none"), I2V)


def unfinished(home: Path, patch: Patch) -> None:
    record = recorded(home, patch).path / "videogen.json"
    record.write_text(record.read_text().replace('"complete": true', '"complete": false'))


def damaged(home: Path, patch: Patch) -> None:
    place = recorded(home, patch).path
    os.truncate(place / SHARD, 1000)
    (place / ENCODER).unlink()


def own_damaged(home: Path, patch: Patch) -> None:
    place = copied(home, patch)
    os.truncate(place / SHARD, 1000)
    patch.setenv("I2V_MODEL_ID", str(place))


def changed(home: Path, _: Patch) -> None:
    """The hub client's own layout names the hash of each file, so that it is known without a record."""
    place = home / "models" / ("models--" + I2V.replace("/", "--")) / "snapshots" / "abc"
    shutil.copytree(tiny_repos() / "i2v", place)
    (place / "README.md").unlink()
    content = (place / SHARD).read_bytes()
    blob = home / "models" / hashlib.sha256(content).hexdigest()
    blob.write_bytes(content)
    (place / SHARD).unlink()
    (place / SHARD).symlink_to(blob)
    flip(blob, len(content) // 2)


def large(home: Path, patch: Patch) -> None:
    copied(home, patch)
    patch.setattr(weights, "_PREPARED_LESS_THAN_BYTES", 1000)


def offline(_: Path, patch: Patch) -> None:
    patch.setattr(constants, "HF_HUB_OFFLINE", True)


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


def other_key(_: Path, patch: Patch) -> None:
    other = Webhook(f"whsec_{'B' * 32}")
    patch.setattr(envelopes, "Webhook", lambda _: other)


def shared_memory(folder: str = "") -> Callable[[Deployment], Finding]:
    return lambda there: disks.check_shared_memory(there.temporary / folder)


def program(script: str) -> Callable[[Path, Patch], None]:
    def before(home: Path, _: Patch) -> None:
        (home / "ffmpeg").write_text(f"#!/bin/sh\n{script}\n")
        (home / "ffmpeg").chmod(0o755)

    return before


def with_own_ffmpeg(there: Deployment) -> Finding:
    return ffmpeg.check(replace(there, ffmpeg=there.temporary / "ffmpeg"))


NO_FFMPEG = {"advice": "install imageio-ffmpeg again", "stops": True}
# fmt: off
ROWS: dict[str, Row] = {
    # gpu
    "gpu healthy": Row(gpu.check, "OK",
        "H100 80GB, 79.1 GiB, compute capability 9.0; driver 570.86.15 for CUDA 12.8, torch for CUDA 12.8", gpu=H100),
    "gpu several": Row(gpu.check, "OK", "; the first of 4 GPUs", gpu=H100, given={"device": device_of(H100, count=4)}),
    "gpu demo": Row(gpu.check, "OK", "the demo model runs on the CPU"),
    "gpu demo on the platform": Row(gpu.check, "OK", "the demo model", env={"MODEL_PROFILE": "demo", **PLATFORM}),
    "gpu cpu build": hidden(Device(None), "torch is built without CUDA", "install torch's CUDA build"),
    "gpu no driver": hidden(Device(None, torch_cuda="13.0"), "nor its driver", "choose a GPU type for the endpoint"),
    "gpu old driver": hidden(Device(None, torch_cuda="13.0", driver=Driver((12, 4), "550.54.15")),
        "its driver 550.54.15 serves CUDA 12.4, and torch needs 13.0", "allow only hosts with CUDA 13.0 or later"),
    "gpu hidden": hidden(Device(None, torch_cuda="12.8", driver=Driver((12, 8), "570.86.15")),
        "though its driver 570.86.15 is there", "unset CUDA_VISIBLE_DEVICES"),
    "gpu silent": hidden(Device(None, silent_s=8.0), "the GPU did not answer in 8 s", "end this worker"),
    "gpu broken": hidden(Device(None, failure="CudaError"), "the GPU cannot be asked (CudaError)", "end this worker"),
    "gpu too old": unfit(device_of(Gpu("V100", 16 * GIB, (7, 0))), "it cannot compute in bf16", "Ampere"),
    "gpu unknown to torch": unfit(device_of(from_name("RTX 5090"), architectures=("sm_80", "sm_90")),
        "this torch holds kernels for sm_80, sm_90 only", "choose another GPU type"),
    "gpu does not compute": unfit(device_of(H100, failure="AcceleratorError"),
        "a small computation failed (AcceleratorError)", "another machine"),
    "gpu memory free": Row(gpu.check, "OK", "H100", gpu=H100, given=in_use(2 * GIB)),
    "gpu memory in use": Row(gpu.check, "WARN", "3.0 GiB of its memory are in use already", "beside the doctor",
        gpu=H100, given=in_use(3 * GIB)),
    # plans
    "plan told": Row(i2v(plans.check), "OK", "832x480 with 81 frames: bf16, swap, 34 of 46 GB at the peak, ",
        gpu="L40S"),
    "plan demo": Row(i2v(plans.check), "OK", "the demo model needs less than 1 GB"),
    "plan none": Row(i2v(plans.check), "WARN", "there is no GPU", "what the line gpu says", env=PLATFORM),
    **{f"plan too small, PRELOAD={preload}": Row(i2v(plans.check), "FAIL" if stops else "WARN",
        "does not fit GT 1030 at any size", "choose a GPU with more memory", stops=stops, env={"PRELOAD": preload},
        gpu=Gpu("GT 1030", 2 * GIB, (8, 6))) for preload, stops in (("i2v", True), ("none", False))},
    "plan smaller videos": Row(i2v(plans.check), "WARN",
        "832x480 with 81 frames does not fit GTX 1650; the largest that does is", "choose a GPU", gpu=Gpu("GTX 1650",
        5 * GIB, (8, 6))),
    "plan quantization": Row(i2v(plans.check), "FAIL", "QUANTIZATION: RTX 3090 has no fp8",
        "write int8, none or auto", stops=True, env={"QUANTIZATION": "fp8"}, gpu="RTX 3090"),
    **{f"host {total} GiB": Row(plans.check_host, status, found, advice, gpu=H100, given={"host": Host(total * GIB,
        available * GIB)}) for total, available, status, found, advice in ((256, 200, "OK", "256.0 GiB", ""), (255, 3,
        "FAIL", "3.0 GiB available", "choose a larger machine"), (24, 20, "WARN", "one expert of i2v, 29 GB in bf16",
        "more main memory"))},
    "host slows the plan": Row(plans.check_host, "WARN", "it would as bf16, swap", "more main memory", gpu="L40S",
        given={"host": Host(48 * GIB, 40 * GIB), "host_limit": 40 * 10**9}),
    # attention
    "attention cpu": Row(attention.check, "OK", "torch's own"),
    "attention without sage": Row(attention.check, "WARN", "sage: the package sageattention is not installed",
        "ENABLE_SAGE_ATTENTION=false", gpu=H100),
    "attention off": Row(attention.check, "OK", "switched off", env={"ENABLE_SAGE_ATTENTION": "false"}, gpu=H100),
    # settings
    "settings": Row(settings.check, "OK", "serves demo, loads first: i2v"),
    "settings demo for customers": Row(settings.check, "WARN", "the demo model answers customers",
        "unset MODEL_PROFILE", env={"MODEL_PROFILE": "demo", **PLATFORM}),
    "settings sdk log": Row(settings.check, "WARN", "logs prompts and signed URLs", "unset RUNPOD_LOG_LEVEL",
        env={"RUNPOD_DEBUG_LEVEL": "debug"}),
    "settings unreadable": Row(settings.check, "FAIL", "WEBHOOK_SECRET", "each secret must be whsec_ and base64",
        stops=True, env={"WEBHOOK_SECRET": "not base64!"}),
    "signing": Row(settings.check_signing, "OK", "with 1 secret", env={"WEBHOOK_SECRET": SECRET}),
    "signing with two": Row(settings.check_signing, "OK", "with 2 secrets", env={"WEBHOOK_SECRET":
        f"{SECRET} whsec_{'A' * 32}"}),
    "signing off": Row(settings.check_signing, "WARN", "WEBHOOK_SECRET is not set", "python -c"),
    "signing with another key": Row(settings.check_signing, "FAIL",
        "the signature does not verify with secret 1 of 1", "replace it by one made by: python -c",
        env={"WEBHOOK_SECRET": SECRET}, before=other_key),
    "signing unreadable": Row(settings.check_signing, "WARN", "cannot be read", "the line settings",
        env={"WEBHOOK_SECRET": "not base64!"}),
    # ffmpeg
    "ffmpeg": Row(ffmpeg.check, "OK", "libx264: 5 frames became "),
    "ffmpeg without libx264": Row(with_own_ffmpeg, "FAIL", "the video encoder ended early, with exit code 8",
        before=program("echo 'Unknown encoder libx264' >&2; exit 8"), **NO_FFMPEG),
    "ffmpeg killed": Row(with_own_ffmpeg, "FAIL", "the video encoder ended early, with signal 9",
        before=program("kill -9 $$"), **NO_FFMPEG),
    "ffmpeg missing": Row(with_own_ffmpeg, "FAIL", "the video encoder could not be started", **NO_FFMPEG),
    "ffmpeg without a folder": Row(ffmpeg.check, "FAIL", "no video can be written", "set TMPDIR", stops=True,
        given={"temporary": Path("/nowhere")}),
    # weights
    "weights whole": Row(i2v(weights.check), "OK", "{home}/models/Wan-AI--Wan2.2-I2V-A14B-Diffusers; sizes and samples "
        "are right (every byte: python -m worker.doctor --verify-weights)", env=WAN, gpu=H100, before=recorded),
    "weights verified": Row(i2v(weights.verify), "OK", "every byte", env=WAN, gpu=H100, before=recorded),
    **{f"weights missing, PRELOAD={preload}": Row(i2v(weights.check), "WARN",
        f"{I2V} is not there: about 126 GB are downloaded {when}; without HF_TOKEN",
        "python -m builder.prepare --model i2v --dtype bf16", env={**WAN, "PRELOAD": preload}, gpu=H100) for preload,
        when in (("i2v", "as the worker starts"), ("none", "during the first job that asks for it"))},
    **{f"weights offline, PRELOAD={preload}": Row(i2v(weights.check_presence), "FAIL", "HF_HUB_OFFLINE forbids",
        "unset HF_HUB_OFFLINE", stops=preload == "i2v", env={**WAN, "PRELOAD": preload}, gpu=H100, before=offline)
        for preload in ("i2v", "none")},
    "weights no model": Row(i2v(weights.check), "FAIL", "is not a folder in Diffusers' format",
        "correct I2V_MODEL_ID", stops=True, env={**WAN, "I2V_MODEL_ID": "{home}/nothing"}, gpu=H100),
    "weights unfinished": Row(i2v(weights.check), "WARN", "a download of", "it goes on when a worker", env=WAN,
        gpu=H100, before=unfinished),
    # A worker fixes it: it stops no job.
    "weights truncated": Row(i2v(weights.check), "FAIL", SHARD, "a worker with access to the hub", env=WAN, gpu=H100,
        before=damaged),
    "weights incomplete": Row(i2v(weights.check), "FAIL", f"{ENCODER}: it is missing", "a worker", env=WAN, gpu=H100,
        before=damaged),
    "weights changed between samples": Row(i2v(weights.check), "OK", "samples", env=WAN, gpu=H100, before=changed),
    "weights changed, every byte": Row(i2v(weights.verify), "FAIL", f"{SHARD}: the content is not what the hub has",
        "a worker", env=WAN, gpu=H100, before=changed),
    "weights of the operator": Row(i2v(weights.check), "FAIL", SHARD, "put these files there again", env=WAN,
        gpu=H100, before=own_damaged),
    "weights as published": Row(i2v(weights.check), "WARN", "as published", "--dtype bf16 --replace", env=WAN,
        gpu=H100, before=large),
    **{f"weights demo, {check.__name__}": Row(i2v(check), "OK", "not needed") for check in (weights.check,
        weights.check_presence, weights.verify)},
    # disks
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
    row = ROWS[name]
    for variable, value in row.env.items():
        monkeypatch.setenv(variable, value.replace("{home}", str(tmp_path)))
    row.before(tmp_path, monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    found = row.check(deployment(tmp_path, row.gpu, **row.given))
    assert (found.status, found.stops_jobs) == (row.status, row.stops), found
    assert row.found.replace("{home}", str(tmp_path)) in found.found
    assert row.advice in found.advice
    assert bool(found.advice) == (found.status != "OK")
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != "state"] == [
        path for path in before if path.name != "state"
    ]


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


def test_with_a_token_the_rate_of_the_download_is_no_matter(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("MODEL_PROFILE", "wan2.2")
    monkeypatch.setenv("HF_TOKEN", "hf_1234567890")
    assert "HF_TOKEN" not in weights.check(deployment(tmp_path, H100), "i2v").found


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


def test_readable_settings_count_beside_unreadable_ones(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("MAX_FRAMES", "many")
    monkeypatch.setenv("MAX_PIXELS", "100000")
    there = deployment(tmp_path)
    assert (there.settings.max_pixels, there.settings.max_frames, len(there.problems)) == (100_000, 161, 1)


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((8, 9), ("sm_80",), True),
        ((8, 0), ("sm_86",), False),
        ((9, 0), ("sm_90a",), True),
        ((12, 0), ("sm_90", "compute_90"), True),
        ((12, 0), ("sm_90",), False),
        ((7, 0), ("sm_75", "compute_80"), False),
        ((8, 0), (), True),
    ],
)
def test_kernels_run_on_their_own_generation_and_ptx_on_later_ones(
    capability: tuple[int, int], architectures: tuple[str, ...], runs: bool
) -> None:
    assert gpu.runs_on(capability, architectures) is runs


def test_this_machine_and_its_driver_are_looked_at_as_they_are(tmp_path: Path) -> None:
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n")
    assert driver("libdoes-not-exist.so", version) == Driver(None, "550.54.15")
    assert driver("libc.so.6", tmp_path / "nothing") == Driver(None, None)
    found = look(None, compute=True)
    assert (found.gpu, found.count, found.torch_cuda) == (None, 0, torch.version.cuda)
    host = Host.here()
    assert 0 < host.available_bytes <= host.total_bytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_driver_that_hangs_and_one_that_fails_are_findings(monkeypatch: Patch) -> None:
    over = threading.Event()

    def hang(_: object) -> Planner:
        over.wait(30)
        raise RuntimeError

    def fail(_: object) -> Planner:
        raise torch.AcceleratorError("CUDA error: unknown error")

    monkeypatch.setattr(planning, "planner_for", hang)
    try:
        found = gpu.check(Deployment.tried(*readable_settings(), limit_s=0.05))
    finally:
        over.set()
    assert (found.status, found.found) == ("FAIL", "the GPU did not answer in 0 s")
    monkeypatch.setattr(planning, "planner_for", fail)
    assert "the GPU cannot be asked (AcceleratorError)" in gpu.check(Deployment.tried(*readable_settings())).found


def test_attention_names_what_serves_best_first() -> None:
    exact = {"_flash_3": "the module flash_attn_interface is not installed", "native": None}
    finding = attention.judge({"sage": None}, exact, wanted=True)
    assert (finding.status, finding.found) == ("OK", "sage, native")
    old = attention.judge({"sage": "sageattention 1.0.6 is too old, 2.1.1 or newer is needed"}, exact, wanted=True)
    assert old.status == "WARN"
    assert "1.0.6 is too old" in old.found
