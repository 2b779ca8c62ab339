"""The JSON Schema of a job's `input`; `builder.schemas` writes it to docs/schemas.

The schema shows the default limits; an operator may have moved MAX_VIDEOS_PER_JOB, MAX_PIXELS and MAX_FRAMES.
"""

from __future__ import annotations

from typing import Any

from worker.request.payload import FullInput, JobInput, VideoInput


def input_schema() -> dict[str, Any]:
    """Either form of the input: a list of video requests, or a single one at the top level."""
    full = FullInput.model_json_schema()
    job = JobInput.model_json_schema()
    video = VideoInput.model_json_schema()
    single = {
        "title": "SingleVideoInput",
        "description": "One video request with the fields of the job beside it.",
        "type": "object",
        "properties": {**job["properties"], **video["properties"]},
        "required": ["prompt"],
        "not": {"required": ["job_request_params"]},
    }
    definitions = full.pop("$defs")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "VideoGen-RunPod input",
        "anyOf": [full, single],
        "$defs": definitions,
    }
