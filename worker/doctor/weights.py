"""The weights of each model: are they here, whole as far as a quick check shows, and in the form that loads fastest?"""

from __future__ import annotations

from dataclasses import dataclass

from huggingface_hub import constants

from worker import weights as model_weights
from worker.base.errors import SettingsError, WorkerError
from worker.doctor.deployment import Deployment
from worker.doctor.plans import spec_of
from worker.doctor.report import Finding, fail, ok, warn
from worker.request import plan as memory
from worker.weights import ModelCache, ModelFolder
from worker.weights.folder.check import present_files
from worker.weights.folder.places import local_folder
from worker.weights.folder.record import Dtype

_GB = 1e9
_SHOWN = 3
_VOLUME_BYTES_PER_S = 300e6  # what RunPod's network volumes give: 200 to 400 MB/s
# The A14B models are 126 GB as published and 69 GB prepared.
_PREPARED_LESS_THAN_BYTES = 100e9
FULL_CHECK = "python -m worker.doctor --verify-weights"


@dataclass(frozen=True, slots=True)
class Found:
    """The first complete folder of a model, or None; `unfinished`: a download of it has begun."""

    model_id: str
    folder: ModelFolder | None
    unfinished: bool


def search(deployment: Deployment, key: str) -> Found:
    """Looks where a worker would look; reads no weights and asks no hub."""
    cache = ModelCache(deployment.model_cache, deployment.runpod_cache)
    model_id = deployment.settings.model_ids[key]
    found = list(cache.candidates(model_id, prepared=_wanted(deployment, key)))
    folder = next((folder for folder in found if folder.complete), None)
    return Found(model_id, folder, folder is None and bool(found))


def check_presence(deployment: Deployment, key: str) -> Finding:
    """The cheap half of `check`, for the start: whether the weights are found, and what happens if not."""
    if deployment.profile == "demo":
        return ok("not needed: the demo model is made on the spot")
    found = search(deployment, key)
    if found.folder is not None:
        return ok(f"{found.folder.repo} in {found.folder.path}")
    local = local_folder(found.model_id)
    needed = key in deployment.settings.preload
    if local is not None:
        return fail(
            f"{local} is not a folder in Diffusers' format",
            f"correct {_variable(key)}: name a folder that has a model_index.json, or a model of the hub",
            stops_jobs=needed,
        )
    repo = model_weights.diffusers_repo(found.model_id)
    download = f"about {_published_bytes(key) / _GB:.0f} GB"
    prepare = f"fetch them ahead: python -m builder.prepare --model {key} --dtype bf16"
    if constants.HF_HUB_OFFLINE:
        return fail(
            f"{repo} is not there, and HF_HUB_OFFLINE forbids to download it",
            "unset HF_HUB_OFFLINE, or put the model on the volume",
            stops_jobs=needed,
        )
    if found.unfinished:
        return warn(f"a download of {repo} is not finished", f"it goes on when a worker needs it; or {prepare}")
    token = "" if deployment.settings.hub_token else "; without HF_TOKEN the hub may limit the download's rate"
    when = "as the worker starts" if needed else "during the first job that asks for it"
    return warn(f"{repo} is not there: {download} are downloaded {when}{token}", prepare)


def check(deployment: Deployment, key: str) -> Finding:
    """Sizes, headers and sampled blocks of every file; what a changed byte between them needs is `verify`."""
    presence = check_presence(deployment, key)
    folder = search(deployment, key).folder if deployment.profile != "demo" else None
    if folder is None:
        return presence
    if problems := model_weights.check(folder.path):
        return _damaged(folder, problems, key)
    size_bytes = sum((folder.path / name).stat().st_size for name in present_files(folder.path))
    found = f"{folder.repo}{f' in {folder.dtype}' if folder.dtype else ''}, {_size(size_bytes)} in {folder.path}"
    if folder.dtype is None and size_bytes > _PREPARED_LESS_THAN_BYTES:
        return warn(
            f"{found}: as published, which takes {size_bytes / _VOLUME_BYTES_PER_S:.0f} s to read at 300 MB/s",
            f"make what loads in half the time: python -m builder.prepare --model {key} --dtype bf16 --replace",
        )
    return ok(f"{found}; sizes and samples are right (every byte: {FULL_CHECK})")


def verify(deployment: Deployment, key: str) -> Finding:
    """Reads every byte of the model and compares hashes: about 7 minutes for 126 GB."""
    folder = search(deployment, key).folder if deployment.profile != "demo" else None
    if folder is None:
        return check_presence(deployment, key)
    if problems := model_weights.verify(folder.path):
        return _damaged(folder, problems, key)
    return ok(f"{folder.repo} in {folder.path}: every byte whose hash is known is right")


def _damaged(folder: ModelFolder, problems: list[str], key: str) -> Finding:
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    found = f"{folder.repo} in {folder.path} is damaged: {'; '.join(problems[:_SHOWN])}{more}"
    if folder.source == "local":
        return fail(found, f"put these files there again, or correct {_variable(key)}")
    if folder.source == "prepared":
        return fail(found, f"prepare it again: python -m builder.prepare --model {key} --dtype {folder.dtype}")
    return fail(found, f"a worker with access to the hub fixes it at its next start; look at every byte: {FULL_CHECK}")


def _wanted(deployment: Deployment, key: str) -> Dtype:
    """The prepared precision that the engine asks for."""
    try:
        plan = deployment.planner.standard(spec_of(key))
    except (WorkerError, SettingsError):
        return "bf16"
    return "fp8" if plan.precision == "fp8" else "bf16"


def _size(size_bytes: float) -> str:
    return f"{size_bytes / _GB:.1f} GB" if size_bytes >= _GB else f"{size_bytes / 1e6:.1f} MB"


def _variable(key: str) -> str:
    return {"i2v": "I2V_MODEL_ID", "t2v": "T2V_MODEL_ID", "5b": "TI2V_MODEL_ID"}[key]


def _published_bytes(key: str) -> int:
    """What the hub has of a model: experts in fp32, text encoder in bf16, VAE in fp32."""
    size = memory.size_of(spec_of(key))
    return size.experts * size.expert_params * 4 + size.text_encoder_params * 2 + size.vae_params * 4
