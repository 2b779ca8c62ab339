"""Prepared weights into which the distilled LoRAs of turbo were fused: where they lie, and whether they are whole.

They lie beside the other prepared weights, as REVISION-bf16-turbo or REVISION-fp8-turbo, with a record that names the
repository of the LoRAs. Nothing else is ever taken for them, and they for nothing else.
"""

from __future__ import annotations

from pathlib import Path

from worker.base.errors import ModelUnavailable
from worker.weights.folder import check
from worker.weights.folder import record as records
from worker.weights.folder.places import ModelFolder, diffusers_repo, home, local_folder, prepared_folder
from worker.weights.folder.record import Dtype

_SUFFIX = "-turbo"
_PREFERENCE: dict[Dtype, tuple[Dtype, ...]] = {"bf16": ("bf16", "fp8"), "fp8": ("fp8", "bf16")}


def folder_for(original: ModelFolder, dtype: Dtype, cache_dir: Path) -> Path:
    """Where the fused weights of a model belong."""
    plain = prepared_folder(original, dtype, cache_dir)
    return plain.with_name(f"{plain.name}{_SUFFIX}")


def find(model_id: str, *, cache_dir: Path, prepared: Dtype) -> ModelFolder | None:
    """The newest folder of the precision that is wanted, else of the other one; its content is not checked."""
    repo, local = diffusers_repo(model_id), local_folder(model_id)
    beside = home(cache_dir, repo) if local is None else local.parent
    stem = "*" if local is None else local.name
    for dtype in _PREFERENCE[prepared]:
        found = (path for path in beside.glob(f"{stem}-{dtype}{_SUFFIX}") if not path.name.startswith("."))
        for path in sorted(found, key=lambda path: -path.stat().st_mtime):
            record = records.read(path)
            if record is not None and record.complete and record.fused is not None and record.dtype == dtype:
                return ModelFolder(path, repo, record.revision, "prepared", dtype)
    return None


def ensure(model_id: str, *, cache_dir: Path, prepared: Dtype) -> ModelFolder:
    """A folder that has passed the cheap check. Raises ModelUnavailable: no hub has these weights."""
    folder = find(model_id, cache_dir=cache_dir, prepared=prepared)
    if folder is None:
        raise ModelUnavailable("the fused weights of turbo are gone: run python -m builder.prepare --turbo again")
    if problems := check.check(folder.path):
        raise ModelUnavailable(
            f"the fused weights of turbo are damaged ({'; '.join(problems)}): delete the folder {folder.path.name} and "
            "run python -m builder.prepare --turbo again"
        )
    return folder
