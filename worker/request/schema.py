"""The JSON Schema of a job's `input`; `builder.schemas` writes it to docs/schemas.

The schema shows the default limits; an operator may have moved MAX_VIDEOS_PER_JOB, MAX_PIXELS and MAX_FRAMES.
"""

from __future__ import annotations

from typing import Any

from worker.request.payload import FullInput, JobInput, VideoInput


def input_schema() -> dict[str, Any]:
    """Either form of the input: a list of video requests, or a single one at the top level."""
    full, job, video = (_nullable(model.model_json_schema()) for model in (FullInput, JobInput, VideoInput))
    single = {
        "title": "SingleVideoInput",
        "description": "One video request with the fields of the job beside it.",
        "type": "object",
        "properties": {**job["properties"], **video["properties"]},
        "required": ["prompt"],
        "not": {
            "required": ["job_request_params"],
            "properties": {"job_request_params": {"not": {"type": "null"}}},
        },
    }
    definitions = {name: _nullable(schema) for name, schema in full.pop("$defs").items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "VideoGen-RunPod input",
        "anyOf": [full, single],
        "$defs": definitions,
    }


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
