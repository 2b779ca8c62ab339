"""The volume: which of its two mount points is there, and what lies in the model cache and RunPod's cached models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from worker.doctor.deployment import Deployment
from worker.doctor.finding import Finding, ok, together, warn

_SHOWN = 8
_LOOKED_AT = 1000  # a folder of a network volume may hold any number of files


@dataclass(frozen=True, slots=True)
class Folder:
    """`mounted`: another file system begins here. `names` is what lies in it, None where that cannot be listed."""

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


def look(path: Path) -> Folder:
    """Lists a folder; hidden files are left out."""
    try:
        names = sorted(entry.name for entry in islice(path.iterdir(), _LOOKED_AT) if not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return Folder(path, exists=False, mounted=False, names=())
    except OSError:
        return Folder(path, exists=True, mounted=path.is_mount(), names=None)
    return Folder(path, exists=True, mounted=path.is_mount(), names=tuple(names))


def check(deployment: Deployment) -> Finding:
    """Where the volume is, and whether the model cache lies on it."""
    volumes = [look(path) for path in deployment.volumes]
    return judge(
        volumes,
        look(deployment.model_cache),
        look(deployment.runpod_cache),
        needed=deployment.settings.on_platform and deployment.profile != "demo",
    )


def judge(volumes: Sequence[Folder], cache: Folder, cached: Folder, *, needed: bool) -> Finding:
    """`needed`: a worker of the platform that serves the real models, which would download them on every start."""
    listing = "; ".join(map(str, volumes))
    findings = [ok(f"{listing}; MODEL_CACHE_DIR is {cache.path} and {cache.contents}")]
    if cached.exists:
        findings.append(ok(f"RunPod's cached models: {cached.contents}"))
    mounted = [volume for volume in volumes if volume.mounted]
    if needed and not mounted and not cached.exists and not cache.names:
        findings.append(
            warn(
                "no volume is mounted: every new worker downloads its models anew",
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
