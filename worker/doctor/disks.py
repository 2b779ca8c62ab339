"""The volume and the folders on it, tried by really writing: `df` means nothing on a network volume."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from worker.base import files, locks, os_errors
from worker.doctor import weights
from worker.doctor.deployment import Deployment
from worker.doctor.report import Finding, fail, ok, together, warn

PROBE_BYTES = 8 * 1024**2
_PROBE = ".doctor-"
_PROBE_KEEP_S = 3600.0
_MB = 1e6
_MIB = 1024**2
# RunPod's SDK refuses to start a worker with less of / free (RUNPOD_MIN_DISK_PERCENT).
_SDK_LEAST_FREE = 0.10
_SHARED_MEMORY = Path("/dev/shm")
_SHARED_MEMORY_BYTES = 64 * _MIB  # what container engines give by default
_SHOWN = 8
_LOOKED_AT = 1000  # a folder of a network volume may hold any number of files


@dataclass(frozen=True, slots=True)
class Folder:
    """`mounted`: another file system begins here. `names` is its content, None where that cannot be listed."""

    path: Path
    exists: bool
    mounted: bool
    names: tuple[str, ...] | None

    def __str__(self) -> str:
        if not self.exists:
            return f"{self.path} is not there"
        return f"{self.path} ({'a mounted volume' if self.mounted else 'no mounted volume'}) {self.contents}"

    @property
    def contents(self) -> str:
        if not self.exists:
            return "is not there"
        if self.names is None:
            return "cannot be listed"
        if not self.names:
            return "is empty"
        more = f" and {len(self.names) - _SHOWN} more" if len(self.names) > _SHOWN else ""
        return f"holds {', '.join(self.names[:_SHOWN])}{more}"


def look_at(path: Path) -> Folder:
    """Lists a folder; hidden files are left out."""
    try:
        names = sorted(entry.name for entry in islice(path.iterdir(), _LOOKED_AT) if not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return Folder(path, exists=False, mounted=False, names=())
    except OSError:
        return Folder(path, exists=True, mounted=path.is_mount(), names=None)
    return Folder(path, exists=True, mounted=path.is_mount(), names=tuple(names))


def check_volume(deployment: Deployment) -> Finding:
    """Where the volume is, and whether the model cache is on it."""
    volumes = [look_at(path) for path in deployment.volumes]
    return judge_volume(
        volumes,
        look_at(deployment.model_cache),
        look_at(deployment.runpod_cache),
        needed=deployment.settings.on_platform and deployment.profile != "demo",
    )


def judge_volume(volumes: Sequence[Folder], cache: Folder, cached: Folder, *, needed: bool) -> Finding:
    """`needed`: a worker of the platform that serves the real models, which would download them on every start."""
    listing = "; ".join(map(str, volumes))
    findings = [ok(f"{listing}; MODEL_CACHE_DIR is {cache.path} and {cache.contents}")]
    if cached.exists:
        findings.append(ok(f"RunPod's cached models: {cached.contents}"))
    mounted = [volume for volume in volumes if volume.mounted]
    if needed and not mounted and not cached.exists and not cache.names:
        findings.append(
            warn(
                "no volume is mounted: every new worker downloads its models again",
                "attach a network volume to the endpoint, use RunPod's cached models, or build the weights into the "
                "image",
            )
        )
    elsewhere = [volume.path for volume in mounted if not cache.path.is_relative_to(volume.path)]
    # A cache that holds something was chosen so, as where the image carries the weights.
    if elsewhere and len(elsewhere) == len(mounted) and not cache.names:
        findings.append(
            warn(
                f"MODEL_CACHE_DIR is not on the volume, which is mounted at {elsewhere[0]}",
                f"set MODEL_CACHE_DIR to {elsewhere[0] / 'models'}",
            )
        )
    return together(findings)


def write_probe(folder: Path, size_bytes: int = PROBE_BYTES) -> float:
    """Write, sync and close a file of that size, and read it back. Returns MB/s of the writing; leaves nothing.

    Raises OSError: a network volume may report a full quota only when the file is synced or closed.
    """
    _remove_left_behind(folder)
    content = os.urandom(size_bytes)
    handle, name = tempfile.mkstemp(prefix=_PROBE, dir=folder)
    try:
        began = time.monotonic()
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        seconds = max(time.monotonic() - began, 1e-6)
        if Path(name).read_bytes() != content:
            raise OSError(errno.EIO, "what was read is not what was written")
    finally:
        Path(name).unlink(missing_ok=True)
    return size_bytes / _MB / seconds


def _remove_left_behind(folder: Path) -> None:
    """What a worker that was killed while it wrote has left, and no other may be writing still."""
    oldest_s = time.time() - _PROBE_KEEP_S
    for path in folder.glob(f"{_PROBE}*"):
        with suppress(OSError):
            if path.stat().st_mtime < oldest_s:
                path.unlink()


def check_temporary(deployment: Deployment) -> Finding:
    """The temporary folder, where videos are encoded, and the free space of the container's own disk."""
    folder = deployment.temporary
    try:
        rate = write_probe(folder)
    except OSError as failure:
        reason, advice = os_errors.reason_of(failure)
        return fail(f"the temporary folder {folder} {reason}", f"{advice}, or set TMPDIR to another", stops_jobs=True)
    written = ok(f"the temporary folder {folder} takes {rate:.0f} MB/s")
    disk = shutil.disk_usage("/")
    share = disk.free / disk.total
    if share < _SDK_LEAST_FREE:
        advice = "RunPod's SDK refuses to start with less than 10%: give the endpoint a larger container disk"
        return together([written, warn(f"{share:.0%} of the container's disk are free", advice)])
    return together([written, ok(f"{share:.0%} of the container's disk are free")])


def check_models(deployment: Deployment) -> Finding:
    """Whether downloads and prepared weights can be written to MODEL_CACHE_DIR."""
    if deployment.profile == "demo":
        return ok("not needed: the demo model is made on the spot")
    cache = deployment.model_cache
    folder = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    try:
        rate = write_probe(folder)
    except OSError as failure:
        reason, advice = os_errors.reason_of(failure)
        found = f"MODEL_CACHE_DIR {cache} {reason}"
        if all(weights.search(deployment, key).folder for key in deployment.settings.preload):
            return warn(f"{found}: the models of PRELOAD are there, others cannot be downloaded", advice)
        return fail(found, f"{advice}, or set MODEL_CACHE_DIR to another folder")
    made = "" if folder == cache else f" (to be made in {folder})"
    return ok(f"MODEL_CACHE_DIR {cache}{made} takes {rate:.0f} MB/s")


def check_state(deployment: Deployment) -> Finding:
    """STATE_DIR takes small files, and its locks keep a second holder out."""
    try:
        deployment.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Names of its own: several workers of one volume may be looked at at the same time.
        record, lock = (deployment.state / f".doctor-{uuid.uuid4().hex}.{kind}" for kind in ("json", "lock"))
        try:
            files.write_atomically(record, b"{}")
            held = record.read_bytes() == b"{}" and _keeps_out(lock)
        finally:
            for path in (record, lock):
                path.unlink(missing_ok=True)
    except OSError as failure:
        reason, advice = os_errors.reason_of(failure)
        return fail(
            f"STATE_DIR {deployment.state} {reason}: a job delivered again is made again, and missed webhooks are lost",
            f"{advice}, or set STATE_DIR to another folder",
        )
    if not held:
        return fail(
            f"locks do not hold in STATE_DIR {deployment.state}: two workers may make the same job",
            "set STATE_DIR to a folder on a volume that has file locks (flock)",
        )
    return ok(f"{deployment.state} takes files, and its locks hold")


def check_shared_memory(folder: Path = _SHARED_MEMORY) -> Finding:
    """Locks between processes, which RunPod's SDK uses for its heartbeat, live in shared memory."""
    advice = "start the container with a larger shared memory, such as --shm-size=1g"
    try:
        size_bytes = shutil.disk_usage(folder).total
        write_probe(folder, _MIB)
    except OSError as failure:
        return warn(f"{folder} {os_errors.reason_of(failure)[0]}", advice)
    found = f"{folder} has {size_bytes / _MIB:.0f} MiB"
    return ok(found) if size_bytes >= _SHARED_MEMORY_BYTES else warn(found, advice)


def _keeps_out(lock: Path) -> bool:
    with locks.locked(lock, wait_s=0.0):
        try:
            with locks.locked(lock, wait_s=0.0):
                return False
        except TimeoutError:
            return True
