"""The exported schema: valid, fresh, and of one mind with the parser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from worker.base.errors import InvalidRequest
from worker.request import Output, VideoRequest, schema
from worker.request.parse import parse
from worker.request.payload import JobInput, LoraInput, VideoInput
from worker.request.training_payload import TrainInput

ROOT = Path(__file__).parents[3]
IMAGE = "https://example.com/a.png"
FULL: dict[str, Any] = {
    "prompt": "a cat",
    "negative_prompt": "",
    "reference_image_url": IMAGE,
    "last_image_url": None,
    "reference_video_url": None,
    "height": 480,
    "width": 832,
    "num_frames": 81,
    "fps": 16,
    "num_inference_steps": 50,
    "guidance_scale": 5,
    "guidance_scale_2": 4.5,
    "flow_shift": 5.0,
    "seed": 0,
    "camera_motion": "dolly_in",
    "enhance_prompt": True,
    "quality_preset": "draft",
    "model": "5b",
    "loras": [{"source": "a.safetensors", "scale": 0.5, "expert": "high"}],
    "thumbnail": False,
}
JOB: dict[str, Any] = {"job_id": "abc-123", "webhook_url": "https://example.com/h", "webhook_events": ["failed"]}
ACCEPTED: dict[str, Any] = {
    "the smallest": {"job_request_params": [{"prompt": "a cat"}]},
    "flat": {"prompt": "a cat"},
    "every field": {**JOB, "job_request_params": [FULL]},
    "every field, flat": {**JOB, **FULL},
    "nulls": {
        **dict.fromkeys([*JobInput.model_fields, *VideoInput.model_fields]),
        "prompt": "a cat",
        "loras": [{**dict.fromkeys(LoraInput.model_fields), "source": "a"}],
    },
    "whole floats": {"prompt": "a", "width": 832.0, "fps": 16.0, "seed": -1.0, "num_outputs": 4.0},
    "a resolution": {"prompt": "a", "resolution": "720p", "aspect_ratio": "21:9", "duration_seconds": 10},
    "a pair of LoRAs": {"prompt": "a", "loras": [{"high": "a", "low": "b", "scale": 0.5}]},
    "files": {
        "prompt": "a",
        "output_format": "webm",
        "output_codec": "av1",
        "video_quality": "low",
        "target_fps": 60,
        "frames_zip": True,
        "response_format": "base64",
        "upload_url": IMAGE,
    },
    "a data URI": {"prompt": "a cat", "reference_image_url": "data:image/png;base64,AAAA"},
    "sixteen videos": {"job_request_params": [{"prompt": "a cat"}] * 16},
    "unknown fields": {"prompt": "a cat", "tenant": {"id": 5}},
    "limits, low": {"prompt": "a", "height": 256, "width": 256, "num_frames": 5, "fps": 1, "flow_shift": 0.5},
    "limits, high": {"prompt": "a" * 4000, "width": 1920, "num_frames": 161, "fps": 60, "seed": 2**63 - 1},
    "video to video": {"prompt": "a", "reference_video_url": IMAGE, "strength": 1},
}
REFUSED: dict[str, Any] = {
    "null": None,
    "a list": [{"prompt": "a cat"}],
    "empty": {},
    "no videos": {"job_request_params": []},
    "an object for the list": {"job_request_params": {"prompt": "a cat"}},
    "seventeen videos": {"job_request_params": [{"prompt": "a cat"}] * 17},
    "no prompt": {"job_request_params": [{}]},
    "an empty prompt": {"prompt": ""},
    "a bad list beside a prompt": {"prompt": "a cat", "job_request_params": [{}]},
    "a long prompt": {"prompt": "a" * 4001},
    "a bad job id": {"prompt": "a", "job_id": "a/b"},
    "a bad event": {"prompt": "a", "webhook_events": ["complete"]},
    "a string for a number": {"prompt": "a", "num_inference_steps": "50"},
    "true for a number": {"prompt": "a", "fps": True},
    "a number for true": {"prompt": "a", "thumbnail": 1},
    "height": {"prompt": "a", "height": 255},
    "width": {"prompt": "a", "width": 1921},
    "num_frames, low": {"prompt": "a", "num_frames": 4},
    "num_frames, high": {"prompt": "a", "num_frames": 162},
    "fps": {"prompt": "a", "fps": 61},
    "steps": {"prompt": "a", "num_inference_steps": 101},
    "guidance_scale": {"prompt": "a", "guidance_scale": 0.5},
    "guidance_scale_2": {"prompt": "a", "guidance_scale_2": 20.5},
    "flow_shift": {"prompt": "a", "flow_shift": 0.4},
    "seed": {"prompt": "a", "seed": 2**63},
    "strength": {"prompt": "a", "reference_video_url": IMAGE, "strength": 0},
    "camera_motion": {"prompt": "a", "camera_motion": "spin"},
    "quality_preset": {"prompt": "a", "quality_preset": "best"},
    "model": {"prompt": "a", "model": "14b"},
    "resolution": {"prompt": "a", "resolution": "1080p"},
    "aspect_ratio": {"prompt": "a", "aspect_ratio": "2:1"},
    "duration_seconds": {"prompt": "a", "duration_seconds": 0},
    "num_outputs, low": {"prompt": "a", "num_outputs": 0},
    "num_outputs, high": {"prompt": "a", "num_outputs": 5},
    "seed, low": {"prompt": "a", "seed": -2},
    "no whole float": {"prompt": "a", "width": 832.5},
    "a long negative prompt": {"prompt": "a", "negative_prompt": "a" * 4001},
    "half a pair of LoRAs": {"prompt": "a", "loras": [{"high": "a"}]},
    "prompt: null": {"prompt": None},
    "nine LoRAs": {"prompt": "a", "loras": [{"source": "a"}] * 9},
    "a LoRA without source": {"prompt": "a", "loras": [{}]},
    "a LoRA for a strange expert": {"prompt": "a", "loras": [{"source": "a", "expert": "mid"}]},
}


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    return Draft202012Validator(schema.input_schema())


def accepted_by_parser(payload: object) -> bool:
    try:
        parse(payload, default_job_id="j")
    except InvalidRequest:
        return False
    return True


def test_the_schema_is_valid() -> None:
    Draft202012Validator.check_schema(schema.input_schema())
    assert schema.input_schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_no_reference_leads_nowhere() -> None:
    whole = schema.input_schema()
    names = {part.split('"')[0] for part in json.dumps(whole).split('"#/$defs/')[1:]}
    assert names
    assert names <= whole["$defs"].keys()


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_schema_and_parser_accept(name: str, validator: Draft202012Validator) -> None:
    validator.validate(ACCEPTED[name])
    assert accepted_by_parser(ACCEPTED[name])


@pytest.mark.parametrize("name", REFUSED)
def test_what_schema_and_parser_refuse(name: str, validator: Draft202012Validator) -> None:
    assert not validator.is_valid(REFUSED[name])
    assert not accepted_by_parser(REFUSED[name])


def test_the_job_of_the_repository_is_accepted(validator: Draft202012Validator) -> None:
    payload = json.loads((ROOT / "test_input.json").read_text(encoding="utf-8"))["input"]
    validator.validate(payload)
    assert accepted_by_parser(payload)


def test_every_field_is_in_each_form() -> None:
    full, single, training = schema.input_schema()["anyOf"]
    assert full["properties"].keys() == {*JobInput.model_fields, "job_request_params"}
    assert single["properties"].keys() == {*JobInput.model_fields, *VideoInput.model_fields}
    assert training["properties"].keys() == {*JobInput.model_fields, "train"}
    definitions = schema.input_schema()["$defs"]
    assert definitions["VideoInput"]["properties"].keys() == VideoInput.model_fields.keys()
    assert definitions["TrainInput"]["properties"].keys() == TrainInput.model_fields.keys()


# Fields that are read into other values of a request: its size, its frames, its files.
OUTPUT = {
    "target_fps": "target_fps",
    "output_format": "format",
    "output_codec": "codec",
    "video_quality": "quality",
    "frames_zip": "frames_zip",
    "thumbnail": "thumbnail",
    "upload_url": "upload_url",
}
READ_AWAY = {
    "resolution",
    "aspect_ratio",
    "response_format",
    "duration_seconds",
    "num_outputs",
    "preview",
    "preview_at",
    "preview_only",
    "segments",
    "continuity",
    "overlap_frames",
    "extend_video_url",
    "loop",
    "color_match",
}


def test_defaults_are_those_of_the_parser() -> None:
    (video,) = parse({"prompt": "a cat"}, default_job_id="j").videos
    properties = schema.input_schema()["$defs"]["VideoInput"]["properties"]
    values = {
        name: getattr(video.output, OUTPUT[name]) if name in OUTPUT else getattr(video, name)
        for name in properties.keys() - READ_AWAY - {"loras"}
    }
    stated = {name: entry["default"] for name, entry in properties.items() if entry.get("default") is not None}
    settled = {
        "prompt": "a cat",
        "height": 480,
        "width": 832,
        "num_frames": 81,
        "fps": 16,
        "strength": 0.8,
        "guidance_scale_2": 5.0,
        "seed": video.seed,
        "output_codec": "h264",
    }
    expected = {**dict.fromkeys(values), **settled, **stated}
    assert values == {name: expected[name] for name in values}


def test_every_setting_of_a_video_is_a_field_of_the_schema() -> None:
    derived = {"index", "path", "mode", "warnings", "area", "output", "preview", "chain", "around", "svi"}
    fields = set(VideoRequest.__dataclass_fields__) - derived
    assert fields | OUTPUT.keys() | READ_AWAY == VideoInput.model_fields.keys()
    assert {*OUTPUT.values(), "inline"} == Output.__dataclass_fields__.keys()
