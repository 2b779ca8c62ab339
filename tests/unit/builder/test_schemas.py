"""docs/schemas is fresh, and what the worker really answers and sends is valid by it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError
from openapi_spec_validator import validate as validate_openapi

from builder import schemas
from worker.base.errors import InvalidRequest
from worker.delivery.shapes import answer_schema, webhook_schema
from worker.delivery.webhooks import envelopes
from worker.delivery.webhooks.progress_sender import ProgressEvent
from worker.jobs import answers

SNAPSHOTS = Path(__file__).parents[1] / "jobs" / "snapshots"
RESULT = json.loads((SNAPSHOTS / "result_image.json").read_text(encoding="utf-8"))
FAILURE = answers.video_failure("j", 1, InvalidRequest("is wrong", path="fps"))
COMMON: dict[str, Any] = {"event_id": "evt_1", "timestamp": datetime.now(UTC), "total": 2}


def test_the_files_are_fresh() -> None:
    assert {file: file.read_text(encoding="utf-8") for file in schemas.files()} == schemas.files()


def test_the_answers_of_jobs_are_valid() -> None:
    validator = Draft202012Validator(answer_schema())
    validator.validate(answers.job_answer("j", [RESULT, FAILURE], {"total": 1.0}))
    validator.validate(answers.job_answer("j", [FAILURE], {"total": 1.0}))
    validator.validate(answers.refused_answer("j", InvalidRequest("is missing", path="prompt"), {"total": 1.0}))
    with pytest.raises(ValidationError):
        validator.validate({"job_id": "j", "status": "done", "videos": [], "timings": {}})


def test_the_webhooks_are_valid() -> None:
    validator = Draft202012Validator(webhook_schema())
    completed = envelopes.completed(RESULT, index=0, **COMMON)
    validator.validate(completed)
    validator.validate(envelopes.failed(FAILURE, http_code=400, message="fps: is wrong", index=None, **COMMON))
    event = ProgressEvent(42, "generating", 0, 3, 50, 12.5)
    progress = envelopes.progress(event, job_id="j", **COMMON)
    validator.validate(progress)
    assert (progress["step"], progress["steps"], progress["eta_seconds"]) == (3, 50, 12.5)
    assert "step" not in envelopes.progress(ProgressEvent(0, "queued", 0), job_id="j", **COMMON)
    with pytest.raises(ValidationError):
        validator.validate({**completed, "code": 500})


def test_the_page_of_the_local_api_is_openapi() -> None:
    validate_openapi(json.loads(schemas.files()[schemas.FOLDER / "openapi.json"]))


def test_types_of_every_form_are_written() -> None:
    schema = {
        "$defs": {"Colour": {"enum": ["red", "blue"]}},
        "type": "object",
        "required": ["a"],
        "properties": {
            "a": {"type": "integer", "description": "how many"},
            "b": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "c": {"type": "array", "items": {"$ref": "#/$defs/Colour"}},
            "d": {"type": "object", "additionalProperties": {"type": "number"}},
            "e": {"const": True},
            "f": {},
        },
    }
    assert schemas.typescript({"thing": schema}).split("\n", 1)[1] == (
        '\nexport type Colour = "red" | "blue";\n'
        "\nexport type Thing = {\n"
        "  /** how many */\n"
        "  a: number;\n"
        "  b?: string | null;\n"
        "  c?: Array<Colour>;\n"
        "  d?: Record<string, number>;\n"
        "  e?: true;\n"
        "  f?: unknown;\n"
        "};\n"
    )
