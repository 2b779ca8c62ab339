"""The JSON Schema of a job's `input`; `builder.schemas` writes it to docs/schemas.

The schema shows the default limits; an operator may have moved MAX_VIDEOS_PER_JOB, MAX_PIXELS and MAX_FRAMES.
"""

from __future__ import annotations

from typing import Any

from worker.request.payload import FullInput, JobInput, VideoInput
from worker.request.training_payload import TrainingInput


def input_schema() -> dict[str, Any]:
    """The three forms of the input: a list of video requests, a single one at the top level, or a training."""
    models = (FullInput, JobInput, VideoInput, TrainingInput)
    full, job, video, training = (_nullable(model.model_json_schema()) for model in models)
    single = {
        "title": "SingleVideoInput",
        "description": "One video request with the fields of the job beside it.",
        "type": "object",
        "properties": {**job["properties"], **video["properties"]},
        "required": ["prompt"],
    }
    definitions = {**full.pop("$defs"), **training.pop("$defs")}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "VideoGen-RunPod input",
        "anyOf": [
            _without(full, "train"),
            _without(single, "job_request_params", "train"),
            _without(training, "job_request_params", "prompt"),
        ],
        "$defs": {name: _nullable(schema) for name, schema in definitions.items()},
    }


def _without(schema: dict[str, Any], *names: str) -> dict[str, Any]:
    """`schema` of an object that must not have one of the fields `names`, unless it is null."""
    given = [{"required": [name], "properties": {name: {"not": {"type": "null"}}}} for name in names]
    return {**schema, "not": {"anyOf": given}}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` of an object with null in each field that need not be given."""
    required = schema.get("required", ())
    properties = {
        name: field if name in required or "anyOf" in field else _or_null(field)
        for name, field in schema["properties"].items()
    }
    return {**schema, "properties": properties}


def _or_null(field: dict[str, Any]) -> dict[str, Any]:
    told = {key: value for key, value in field.items() if key in ("default", "description", "title")}
    kind = {key: value for key, value in field.items() if key not in told}
    return {"anyOf": [kind, {"type": "null"}], **told}
