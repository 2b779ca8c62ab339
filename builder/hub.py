"""RunPod's Hub files, written from the settings: `python -m builder.hub [--check]`.

.runpod/hub.json describes the listing: GPUs, presets, and every variable with its description, type and default.
.runpod/tests.json is what the Hub runs after each release, before it shows it: the demo model, so that a test needs no
69 GB of weights. The Hub judges it by the HTTP status alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import annotated_types
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from worker.base.settings import Settings, variables_of

ROOT = Path(__file__).resolve().parent.parent
# RunPod sets these on every worker. Offered as a field they could be emptied, and the worker would serve nobody.
SET_BY_RUNPOD = frozenset({"runpod_api_key", "runpod_job_url"})
# What is shown at once; all else is under "advanced".
_SHOWN = frozenset(
    (
        *("storage_endpoint_url", "storage_bucket", "storage_access_key", "storage_secret_key", "storage_public_url"),
        *("webhook_secret", "preload", "hf_token"),
    )
)
# torch is built for CUDA 13.0: its driver, or a later one.
_CUDA_VERSIONS = ("13.3", "13.2", "13.1", "13.0")
# Read by RunPod's platform and not by the worker: seconds within which a worker must be ready.
_INIT_TIMEOUT = {
    "key": "RUNPOD_INIT_TIMEOUT",
    "input": {
        "name": "Time to get ready",
        "type": "number",
        "description": "Seconds that a worker has until it is ready. The first one downloads the models: 126 GB for "
        "i2v or t2v take 7 minutes at 300 MB/s. Lower it once the volume holds them",
        "default": 1800,
        "min": 60,
        "advanced": False,
    },
}


@dataclass(frozen=True, slots=True)
class Preset:
    """Values for one kind of GPU. `gpus` are names of `worker.request.plan`; the plan must hold what `env` serves."""

    name: str
    gpus: tuple[str, ...]
    env: Mapping[str, str | int | float | bool]


PRESETS = (
    Preset(
        "H100 or A100, 80 GB: image to video with A14B",
        ("H100 80GB", "A100 80GB"),
        {"PRELOAD": "i2v", "MAX_PIXELS": 1280 * 720, "MAX_FRAMES": 161},
    ),
    Preset(
        "L40S, 48 GB: image to video with A14B, experts swapped",
        ("L40S",),
        {"PRELOAD": "i2v", "MAX_PIXELS": 1280 * 720, "MAX_FRAMES": 81},
    ),
    Preset(
        "RTX 4090, 24 GB: text and image to video with the 5B model",
        ("RTX 4090",),
        {"PRELOAD": "5b", "MAX_PIXELS": 1280 * 704, "MAX_FRAMES": 121},
    ),
)


def hub() -> dict[str, Any]:
    """The content of .runpod/hub.json."""
    names = [name for name in Settings.model_fields if name not in SET_BY_RUNPOD]
    return {
        "title": "VideoGen: Wan 2.2",
        "description": "Short videos from a prompt, pictures or another video with Wan 2.2 A14B and 5B. Videos go to "
        "your bucket, results come with signed webhooks",
        "type": "serverless",
        "category": "video",
        "config": {
            "runsOn": "GPU",
            # Without a network volume the weights are stored here: 126 GB of one A14B model, beside the image.
            "containerDiskInGb": 150,
            "gpuCount": 1,
            "gpuIds": "ADA_80_PRO,AMPERE_80,ADA_48_PRO,ADA_24,-NVIDIA L4",
            "allowedCudaVersions": list(_CUDA_VERSIONS),
            "presets": [{"name": preset.name, "defaults": dict(preset.env)} for preset in PRESETS],
            "env": [*(_entry(name, Settings.model_fields[name]) for name in names), _INIT_TIMEOUT],
        },
    }


def tests() -> dict[str, Any]:
    """The content of .runpod/tests.json. `input` is what a job has there; timeouts are milliseconds."""
    small = {"height": 256, "width": 448, "num_frames": 17, "num_inference_steps": 4, "seed": 7}
    text = {"prompt": "A red paper boat drifts across a still pond at golden hour", **small}
    two = [text, {**text, "num_frames": 9, "thumbnail": False}]
    return {
        "tests": [
            {"name": "text_to_video", "input": text, "timeout": 120_000},
            {"name": "two_videos_of_a_job", "input": {"job_request_params": two}, "timeout": 120_000},
        ],
        "config": {
            "gpuTypeId": "NVIDIA GeForce RTX 4090",
            "gpuCount": 1,
            "env": [{"key": "MODEL_PROFILE", "value": "demo"}],
            "allowedCudaVersions": list(_CUDA_VERSIONS),
        },
    }


def _entry(name: str, field: FieldInfo) -> dict[str, Any]:
    variable = variables_of(name)[0]
    described = {"name": variable.replace("_", " ").capitalize(), **_kind(field), "description": field.description}
    return {"key": variable, "input": described | {"advanced": name not in _SHOWN}}


def _kind(field: FieldInfo) -> dict[str, Any]:
    """Type, default and bounds in the Hub's words. What is unset by default has no default: an empty field is unset."""
    annotation, optional = _plain(field.annotation)
    default: dict[str, Any] = {} if field.default is None else {"default": field.default}
    if annotation is bool and not optional:
        return {"type": "boolean", **default, "trueValue": "true", "falseValue": "false"}
    if annotation is bool or typing.get_origin(annotation) is Literal:
        choices = ("true", "false") if annotation is bool else typing.get_args(annotation)
        options = [{"label": "not set", "value": ""}] if optional else []
        options += [{"label": choice, "value": choice} for choice in choices]
        return {"type": "string", "options": options, "default": "" if optional else field.default}
    if annotation in (int, float):
        return {"type": "number", **default, **_bounds(field)}
    if typing.get_origin(annotation) is tuple:
        return {"type": "string", "default": ",".join(field.default)}
    # Words or a number, such as `all` or 2, are a text to the Hub.
    if annotation in (str, SecretStr, Path, Union):
        return {"type": "string", **{key: str(value) for key, value in default.items()}}
    raise TypeError(f"the Hub has no type for {annotation}: teach builder/hub.py one")


def _plain(annotation: Any) -> tuple[Any, bool]:
    """The type without Annotated and None, and whether None was allowed; Union where several are left."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _plain(typing.get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        parts = [part for part in typing.get_args(annotation) if part is not type(None)]
        optional = len(parts) < len(typing.get_args(annotation))
        return (_plain(parts[0])[0] if len(parts) == 1 else Union), optional
    return annotation, False


def _bounds(field: FieldInfo) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in field.metadata:
        match item:
            # The Hub knows no open bound: the worker itself refuses the bound's own value.
            case annotated_types.Ge(ge=low) | annotated_types.Gt(gt=low):
                found["min"] = low
            case annotated_types.Le(le=high):
                found["max"] = high
    return found


def texts() -> dict[Path, str]:
    """Each file of .runpod with what it should hold."""
    contents = {"hub.json": hub(), "tests.json": tests()}
    return {
        ROOT / ".runpod" / name: json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        for name, content in contents.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m builder.hub", description="Write RunPod's Hub files.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a file is out of date")
    check = parser.parse_args(arguments).check
    outdated = [path for path, text in texts().items() if not path.exists() or path.read_text("utf-8") != text]
    for path in outdated:
        if check:
            print(f"{path.relative_to(ROOT)} is out of date: run make docs", file=sys.stderr)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(texts()[path], encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return 1 if check and outdated else 0


if __name__ == "__main__":
    sys.exit(main())
