"""Where a model is stored: prepared weights, MODEL_CACHE_DIR, RunPod's cached models."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from worker.weights.folder import record as records
from worker.weights.folder.check import MODEL_INDEX
from worker.weights.folder.record import Dtype, Record

logger = logging.getLogger(__name__)

# RunPod's "cached models": the hub client's layout, filled by the platform before the worker starts.
RUNPOD_CACHE = Path("/runpod-volume/huggingface-cache/hub")
# Prepared weights that builder/bake.py put into the image; nobody can write there.
IMAGE_MODELS = Path("/models")
Source = Literal["cache", "runpod", "hub", "prepared", "image", "local"]
# A folder, its source, and the commit that its name is.
_Place = tuple[Path, Source, str | None]

# The originals of these repositories are in Wan's own format, which Diffusers cannot load.
_TWINS = {
    name: f"{name}-Diffusers" for name in ("Wan-AI/Wan2.2-I2V-A14B", "Wan-AI/Wan2.2-T2V-A14B", "Wan-AI/Wan2.2-TI2V-5B")
}
# What serves in which order, by what is wanted: None stands for the originals. A worker that wants bf16 uses fp8
# before it downloads 126 GB again; one that wants the originals uses nothing else.
_PREFERENCE: dict[Dtype | None, tuple[Dtype | None, ...]] = {
    None: (None,),
    "bf16": ("bf16", None, "fp8"),
    "fp8": ("fp8", "bf16", None),
}
_LISTED = 10
_announced: set[str] = set()


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder in Diffusers' format.

    `revision`: the hub's commit, None where unknown. `dtype`: what `builder.prepare` made of the experts, None for the
    originals; with `fp8` the 2-D weights of the blocks are stored as float8_e4m3fn. `complete`: False while a download
    into it is not finished.
    """

    path: Path
    repo: str
    revision: str | None
    source: Source
    dtype: Dtype | None = None
    complete: bool = True


@dataclass(frozen=True, slots=True)
class ModelCache:
    """Where the models of a worker are searched, and the hub that has what is missing.

    `folder` is MODEL_CACHE_DIR: downloads and prepared weights are written there. `runpod` are RunPod's cached models,
    `image` the models in the container image; both are only read. `endpoint`: the hub, None for the hub client's own
    (HF_ENDPOINT). The token is never shown.
    """

    folder: Path
    runpod: Path = RUNPOD_CACHE
    image: Path = IMAGE_MODELS
    endpoint: str | None = None
    token: str | None = field(default=None, repr=False)

    def home(self, repo: str) -> Path:
        """The folder that holds the revisions of a repository and what was prepared from them."""
        return _home(self.folder, repo)

    def lock_path(self, repo: str) -> Path:
        """The lock of a repository: who holds it may change its folders."""
        return self.folder / ".locks" / f"{self.home(repo).name}.lock"

    def prepared_folder(self, original: ModelFolder, dtype: Dtype) -> Path:
        """Where the prepared weights of a model belong: beside a folder given by its path, else in the cache."""
        if original.source == "local":
            return original.path.with_name(f"{original.path.name}-{dtype}")
        revision = original.revision if original.revision is not None else "unpinned"
        return self.home(original.repo) / f"{revision}-{dtype}"

    def locate(
        self, model_id: str, *, prepared: Dtype | None = "bf16", revision: str | None = None
    ) -> ModelFolder | None:
        """The first complete folder that holds the model, or None. Its content is not checked, the hub is not asked.

        Prepared weights are preferred, those in the image before those of the volume, then MODEL_CACHE_DIR, then
        RunPod's cached models. `prepared=None` asks for the originals. With `revision` (a commit, or the branch or tag
        that was downloaded) folders of another known revision are skipped.
        """
        found = self.candidates(model_id, prepared=prepared, revision=revision)
        return next((folder for folder in found if folder.complete), None)

    def candidates(
        self, model_id: str, *, prepared: Dtype | None = "bf16", revision: str | None = None
    ) -> Iterator[ModelFolder]:
        """Every folder that may hold the model, best first, unfinished downloads included."""
        repo = diffusers_repo(model_id)
        for dtype in _PREFERENCE[prepared]:
            for path, source, known_revision in self._places(model_id, repo, dtype):
                record = records.read(path)
                if (record.dtype if record is not None else None) == dtype and (path / MODEL_INDEX).is_file():
                    actual = record.revision if record is not None else known_revision
                    if _serves(revision, actual, record):
                        complete = record is None or record.complete
                        yield ModelFolder(path, repo, actual, source, dtype, complete)

    def looked_at(self, model_id: str) -> tuple[str, str]:
        """What was searched and what was found: for the caller (names of folders only) and for the log (paths)."""
        places = (
            ("MODEL_CACHE_DIR", self.folder),
            ("RunPod's cached models", self.runpod),
            ("the image", self.image),
        )
        public = [f"{label} ({_contents(path)})" for label, path in places]
        private = [f"{label} {path} ({_contents(path)}{_nearest(path)})" for label, path in places]
        wanted = diffusers_repo(model_id)
        return f"{wanted} was looked for in: {', '.join(public)}", f"{wanted} was looked for in: {', '.join(private)}"

    def _places(self, model_id: str, repo: str, dtype: Dtype | None) -> Iterator[_Place]:
        local = local_folder(model_id)
        if local is not None:
            if dtype is None:
                yield local, "local", None
            else:
                yield local.with_name(f"{local.name}-{dtype}"), "prepared", None
        elif dtype is None:
            yield from self._originals(model_id, repo)
        else:
            yield from _prepared(_home(self.image, repo), dtype, "image")
            yield from _prepared(self.home(repo), dtype, "prepared")

    def _originals(self, model_id: str, repo: str) -> Iterator[_Place]:
        for path in _newest_first(self.home(repo)):
            if (path / records.RECORD_NAME).is_file():
                yield path, "cache", None
        for name in dict.fromkeys((repo, model_id.strip())):
            short = name.rpartition("/")[2]
            for path in dict.fromkeys((self.folder / short, self.folder / name, self.home(name))):
                yield path, "cache", None
        for cache in (self.folder, self.folder / "hub"):
            yield from ((path, "cache", path.name) for path in _snapshots(cache, repo))
        yield from ((path, "runpod", path.name) for path in _snapshots(self.runpod, repo))


def diffusers_repo(model_id: str) -> str:
    """The repository in Diffusers' format for a model id; ids without a known twin are returned as they are."""
    twin = _TWINS.get(model_id.strip().rstrip("/"))
    if twin is None:
        return model_id.strip()
    if model_id not in _announced:
        _announced.add(model_id)
        logger.info("%s is in Wan's own format; its Diffusers twin %s is used", model_id, twin)
    return twin


def local_folder(model_id: str) -> Path | None:
    """The folder that a model id names, where it is written as a path (/, ./, ../, ~) and not as ORGANISATION/NAME."""
    return Path(model_id).expanduser() if model_id.startswith(("/", "./", "../", "~")) else None


def _home(cache_dir: Path, repo: str) -> Path:
    return cache_dir / repo.replace("/", "--")


def _serves(wanted: str | None, actual: str | None, record: Record | None) -> bool:
    requested = record.requested if record is not None else None
    return wanted is None or actual is None or wanted in (actual, requested)


def _prepared(folder: Path, dtype: Dtype, source: Source) -> Iterator[_Place]:
    for path in _newest_first(folder):
        if path.name.endswith(f"-{dtype}") and (path / records.RECORD_NAME).is_file():
            yield path, source, None


def _snapshots(hub_cache: Path, repo: str) -> list[Path]:
    """The snapshots of a repository in the hub client's layout, that of the branch main first."""
    folder = hub_cache / ("models--" + repo.replace("/", "--"))
    snapshots = _newest_first(folder / "snapshots")
    try:
        main = (folder / "refs" / "main").read_text().strip()
    except OSError:
        return snapshots
    return sorted(snapshots, key=lambda path: path.name != main)


def _newest_first(folder: Path) -> list[Path]:
    try:
        found = [path for path in folder.iterdir() if path.is_dir() and not _is_aside(path)]
        return sorted(found, key=lambda path: (-path.stat().st_mtime, path.name))
    except OSError:
        return []


def _is_aside(path: Path) -> bool:
    return path.name.startswith(".") or path.name.endswith(".corrupt")


def _nearest(folder: Path) -> str:
    """The content of the nearest folder that exists, where this one does not: it shows a volume mounted elsewhere."""
    if folder.exists():
        return ""
    parent = next(parent for parent in folder.absolute().parents if parent.exists())
    return f"; {parent} {_contents(parent)}"


def _contents(folder: Path) -> str:
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except FileNotFoundError:
        return "does not exist"
    except OSError:
        return "cannot be read"
    if not names:
        return "holds no model"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return "holds " + ", ".join(names[:_LISTED]) + more
