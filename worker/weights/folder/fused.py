"""Prepared weights into which the distilled LoRAs of turbo were fused: where they are, and whether they are whole.

They are stored beside the other prepared weights, as REVISION-bf16-turbo or REVISION-fp8-turbo, with a record that
names the repository of the LoRAs. Nothing else is ever mistaken for them, nor they for anything else.
"""

from __future__ import annotations

from pathlib import Path

from worker.base.errors import ModelUnavailable
from worker.weights.folder import check
from worker.weights.folder import record as records
from worker.weights.folder.places import ModelCache, ModelFolder, diffusers_repo, local_folder
from worker.weights.folder.record import Dtype

_SUFFIX = "-turbo"
_PREFERENCE: dict[Dtype, tuple[Dtype, ...]] = {"bf16": ("bf16", "fp8"), "fp8": ("fp8", "bf16")}


def folder_for(cache: ModelCache, original: ModelFolder, dtype: Dtype) -> Path:
    """Where the fused weights of a model belong."""
    plain = cache.prepared_folder(original, dtype)
    return plain.with_name(f"{plain.name}{_SUFFIX}")


def find(cache: ModelCache, model_id: str, prepared: Dtype) -> ModelFolder | None:
    """The newest folder of the precision that is wanted, else of the other one; its content is not checked."""
    repo, local = diffusers_repo(model_id), local_folder(model_id)
    beside = cache.home(repo) if local is None else local.parent
    stem = "*" if local is None else local.name
    for dtype in _PREFERENCE[prepared]:
        found = (path for path in beside.glob(f"{stem}-{dtype}{_SUFFIX}") if not path.name.startswith("."))
        for path in sorted(found, key=lambda path: -path.stat().st_mtime):
            record = records.read(path)
            if record is not None and record.complete and record.fused is not None and record.dtype == dtype:
                return ModelFolder(path, repo, record.revision, "prepared", dtype)
    return None


def ensure(cache: ModelCache, model_id: str, prepared: Dtype) -> ModelFolder:
    """A folder that has passed the cheap check. Raises ModelUnavailable: no hub has these weights."""
    folder = find(cache, model_id, prepared)
    if folder is None:
        raise ModelUnavailable("the fused weights of turbo are gone: run python -m builder.prepare --turbo again")
    if problems := check.check(folder.path):
        raise ModelUnavailable(
            f"the fused weights of turbo are damaged ({'; '.join(problems)}): delete the folder {folder.path.name} and "
            "run python -m builder.prepare --turbo again"
        )
    return folder
