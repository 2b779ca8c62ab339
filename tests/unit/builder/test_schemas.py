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
from worker.delivery.shapes import answer_schema, training_schema, webhook_schema
from worker.delivery.webhooks import envelopes
from worker.delivery.webhooks.progress_sender import ProgressEvent
from worker.jobs import answers
from worker.request.parse import parse
from worker.training.dataset import Clip, Dataset, Refused

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


TRAINING: dict[str, Any] = json.loads((SNAPSHOTS / "result_training.json").read_text(encoding="utf-8"))


def test_the_answers_of_trainings_are_valid() -> None:
    validator = Draft202012Validator(training_schema())
    validator.validate(TRAINING)
    kept = {"dry_run": True, "estimated_peak_bytes": 5, "estimated_seconds": None}
    made = ("loras", "experts", "samples", "peak_vram_bytes")
    validator.validate({**{name: value for name, value in TRAINING.items() if name not in made}, **kept})
    for name in TRAINING.keys() - set(made):
        assert not validator.is_valid({**TRAINING, name: None}) or name == "cost_usd"
    report = {**TRAINING["dataset"], "refused_files": [{"name": "a.png"}]}
    assert not validator.is_valid({**TRAINING, "dataset": report})


def test_the_webhook_of_a_training_is_valid() -> None:
    completed = envelopes.completed(TRAINING, index=0, **COMMON)
    Draft202012Validator(webhook_schema()).validate({**completed, "message": "LoRA Trained!"})


def test_what_the_result_shows_can_be_pasted_into_a_request() -> None:
    for loras in (TRAINING["loras"], [{"source": "https://a/high.safetensors", "expert": "high", "scale": 1.0}]):
        Draft202012Validator(training_schema()).validate({**TRAINING, "loras": loras})
        job = parse({"prompt": "a cat", "loras": loras}, default_job_id="j")
        assert {lora.scale for lora in job.videos[0].loras} == {1.0}


def test_the_report_on_a_data_set_has_the_shape_of_the_answer() -> None:
    clip = Clip("a.png", "a field", Path("0.npy"))
    report = Dataset((clip,), (clip,), (Refused("b.png", "has no caption"),)).report()
    Draft202012Validator(training_schema()).validate({**TRAINING, "dataset": report})


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
