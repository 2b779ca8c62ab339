"""docs/request.md: every field of the payload with its type, bounds and default, the presets and the camera motions.

The fields of a training are a part of docs/training.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from builder.docs.markdown import page, table
from builder.docs.readme import SENT, camera_motions, presets
from worker.request import foreign
from worker.request.payload import LoraInput, SegmentInput, VideoInput
from worker.request.schema import input_schema
from worker.request.training_payload import TrainInput

# What the schema itself leaves unsaid.
_MEANINGS: Mapping[str, str] = {
    "job_request_params": "The videos of the job, made in this order",
    "webhook_events": "Which events are sent",
    "num_frames": "Lowered to the next 4k + 1, with a warning",
    "width": "See sizes",
    "height": "See sizes",
    "resolution": "See sizes",
    "aspect_ratio": "See sizes",
    "num_inference_steps": "Denoising steps; a preset overrules it",
    "camera_motion": "See camera motions",
    "enhance_prompt": "Adds motion, light, lens, colour and style where an English prompt is silent about them",
    "model": "`a14b`: two experts, 16 fps; `5b`: the small model, 24 fps",
    "loras": "LoRAs to apply, each as described below",
    "output_format": "The container; GIF and WebP are pictures that move",
    "expert": "Which expert of the A14B models it is applied to",
}
_INTRODUCTION = """
The `input` of a RunPod event. Types are strict: `true` is not 1 and `"50"` is not 50, but an integer may stand for a
number, and a whole number such as `832.0` for an integer. In every field `null` means "not given". An operator can move
the limits of frames, pixels and videos ([configuration](configuration.md)); those below are the defaults, and a limit
below a default lowers it. The same as JSON Schema: [schemas/input.schema.json](schemas/input.schema.json).
"""
_FLAT = """
A job of a single video may be written flat: an `input` with `prompt` at its top level, instead of
`job_request_params`, is one video request with the fields of the job beside it.
"""
_MODES = """
`last_image_url` needs `reference_image_url`; `reference_video_url` cannot stand beside an image. The
[README](../README.md#supported-modes) lists the modes of each model; any other fails with `unsupported`.
"""
_LORA = """
A pair, `{"high": ..., "low": ..., "scale": ...}`, is two LoRAs of one scale, and counts as two. `source`,
`high` and `low` are each one of three:

| Sent as | What it is |
| --- | --- |
| `https://example.com/style.safetensors` | fetched as every URL of a request, at most 2 GB, kept for 15 minutes |
| `OWNER/REPO/PATH/style.safetensors` | a file of a repository on the hub, at most 2 GB, verified, kept on the volume |
| `style.safetensors` | a file of any size that you put into `{MODEL_CACHE_DIR}/loras` |

[LoRA files](lora-formats.md) lists whose files are read. A file with a key that fits nothing in the model is
refused with `unsupported`, and its first keys are named. After the video the LoRA is removed, bit for bit.
"""
_EXAMPLES = """
```json payload
{
  "job_id": "order-7781",
  "webhook_url": "https://api.example.com/webhook",
  "webhook_events": ["completed", "failed"],
  "job_request_params": [
    {"prompt": "Waves break over a lighthouse in a storm", "quality_preset": "draft", "seed": 7},
    {"prompt": "The same lighthouse on a calm morning", "num_frames": 49, "thumbnail": false}
  ]
}
```

Instead of videos a job may train a LoRA: `train` stands in place of `job_request_params`
([training](training.md#the-request)).

The videos of a job are made in order. Each is delivered while the next one is made, and one that fails does not stop
the others. `job_id` makes a job safe to send twice: within 7 days the same `job_id` with the same payload returns the
videos that exist, and with another payload it is refused.
"""
_SOURCES = """
| What | Pictures | Videos |
| --- | --- | --- |
| Sent as | an http(s) URL, or a `data:` URI | an http(s) URL |
| Formats | JPEG, PNG, WebP, HEIC, GIF, BMP, TIFF, AVIF; of an animation the first frame | MP4, MOV, WebM, Matroska |
| At most | 25 MB; 33 megapixels, a JPEG 110, HEIC 51 | 250 MB; 4096x2304 |

The bytes decide, not the name or the type that is stated. A `data:` URI may have any or no media type, parameters,
base64 in either alphabet, in lines or without its padding, or percent-encoded bytes.

Both are read as viewers and players show them. Pictures: upright by EXIF, colours by their profile, transparency on
white. Videos: upright, with square pixels, from their first frame on, resampled to `fps`; HDR (PQ and HLG) is
tone-mapped, what is flagged as interlaced is deinterlaced, and colours without a tag are BT.709 from 720 lines on,
BT.601 below.

The frame is filled: what does not fit its aspect ratio is cropped evenly on both sides. A crop of more than 5% is a
line in `warnings`. A reference video that is too short lowers `num_frames`, with a line
too.
"""
_SIZES = """
Say the size in one of two ways: `width` and `height`, or `resolution` and `aspect_ratio`; nothing is fine too.

| Sent | Without a picture or video | With one |
| --- | --- | --- |
| nothing | the model's own size: 832x480, on `5b` 1280x704 | its aspect, at that area |
| `resolution` | 16:9 at that area: 832x480, 1024x576, 1280x720 (`5b`: 1280x704) | its aspect, at that area |
| `aspect_ratio` | that aspect at the area; `auto` is 16:9 | that aspect, cropped to it; `auto` is its own |
| one of `width`, `height` | the other is the model's own | the other follows it |
| both | that size | that size, cropped to it |

Sizes other than 16:9 and 9:16 are the multiples of 16 (`5b`: 32) nearest to the aspect within the area: `1:1` is
624x624 at 480p. `duration_seconds` goes in place of `num_frames`: 5 seconds at 16 fps are 81 frames.

`fps` is the rate at which the frames that the model makes are played: 16, on `5b` 24. Another rate makes the motion
slower or faster, and a line in `warnings` says so. `target_fps` leaves the motion as it is and adds frames between; a
file has 1,000 of them at most.

On the [demo model](demo-model.md) what is not given is what it was trained for: 256x256, 17 frames, 12 steps, guidance
3. A request outside of that has a line in `warnings`.
"""
_CORRECTIONS = """
Corrected, each with a line in the result's `warnings`: `num_frames` goes down to the next 4k + 1; `height` and `width`
go down to a multiple of 16 (32 for model `5b`). Where a preset stands beside steps or guidance that differ, a line says
what counts.

A field that is not known is ignored, with a line in `warnings`. Refused, with what to send instead, are a name that
resembles one of ours (`num_infrence_steps`, `widht`), and another service's name for something that is here, or that
would change the video ([the table](#coming-from-fal-replicate-comfyui-openai-videos)); a field in a segment that
belongs to the request around it (`width`); and an object of more than 1,000 fields.

Everything else that is out of range is an error that names the field by its path, such as
`job_request_params[2].num_frames`. All problems of a payload are reported at once, those of sizes, limits and addresses
among them: the message has them all, and `problems` lists each with its path ([errors](errors.md)).
"""
_COMING = """
What others call the things that can be asked for here. Case, hyphens and underscores do not matter. Each of these names
is refused with `invalid_request`, so that nothing is made, and paid for, that was not meant. The last rows ask for what
this worker does not do.
"""
_FIELD_HEADS = ("Field", "Type", "Default", "Meaning")


def render() -> str:
    schema = input_schema()
    definitions = schema["$defs"]
    return page(
        "worker/request/payload.py, worker/request/settle.py, worker/request/foreign.py and worker/request/prompt.py",
        "# The request",
        _INTRODUCTION,
        "## The job",
        _fields(schema["anyOf"][0]["properties"], required=("job_request_params",)),
        _FLAT,
        _EXAMPLES,
        "## The video request",
        _fields(definitions[VideoInput.__name__]["properties"], required=("prompt",)),
        "## A LoRA",
        _fields(definitions[LoraInput.__name__]["properties"], required=()),
        _LORA,
        "## A segment",
        "One clip of a [video longer than one](longer-clips.md).",
        _fields(definitions[SegmentInput.__name__]["properties"], required=()),
        "## Quality presets",
        "A preset overrules `num_inference_steps`, `guidance_scale` and `guidance_scale_2` beside it. "
        "[`guidance_until`](acceleration.md#guidance-that-ends-early) ends guidance behind that share of the steps.",
        presets(),
        "## Camera motions",
        "The phrase is added also with `enhance_prompt` off, unless the prompt asks for that very move already.",
        camera_motions(),
        "## Sizes, lengths and rates",
        _SIZES,
        "## Which mode a request is",
        _modes(),
        _MODES,
        "## Pictures and videos",
        _SOURCES,
        "## What is corrected, and what is refused",
        _CORRECTIONS,
        "## Coming from fal, Replicate, ComfyUI, OpenAI videos",
        _COMING,
        *_foreign(),
        "## The default negative prompt",
        f"Wan's own, word for word:\n\n> {VideoInput.model_fields['negative_prompt'].default}",
    )


def training_fields() -> str:
    """The fields of `train`."""
    properties = input_schema()["$defs"][TrainInput.__name__]["properties"]
    return _fields(properties, required=("training_data_url",), meanings={})


def _modes() -> str:
    return table(("Sent", "Mode"), [(sent, f"`{mode}`") for mode, sent in SENT.items()])


def _foreign() -> list[str]:
    """A table for what stands in a job, one for a video and one for a LoRA."""
    parts = []
    for place, entries in foreign.TABLES.items():
        rows = [
            (", ".join(f"`{name}`" for name in entry.names), _ours(entry.ours), entry.note)
            for entry in sorted(entries, key=lambda entry: entry.ours is None)
        ]
        parts += [f"In {place}:", table(("Sent elsewhere", "Here", ""), rows)]
    return parts


def _ours(name: str | None) -> str:
    return "not offered" if name is None else re.sub(r"\w+_\w+|^\w+$|width|height|loras", r"`\g<0>`", name)


def _fields(
    properties: Mapping[str, Mapping[str, Any]], *, required: Iterable[str], meanings: Mapping[str, str] = _MEANINGS
) -> str:
    rows = []
    for name, schema in properties.items():
        meaning = ". ".join(text for text in (schema.get("description"), meanings.get(name)) if text)
        default = "**required**" if name in required else _default(name, schema)
        rows.append((f"`{name}`", _type(schema), default, meaning))
    return table(_FIELD_HEADS, rows)


def _default(name: str, schema: Mapping[str, Any]) -> str:
    if name == "negative_prompt":
        return "see below"
    if name == "webhook_events":
        return "all"
    value = schema.get("default", [])
    return "–" if value in (None, "") else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _type(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        outer = {name: value for name, value in schema.items() if name in ("minimum", "maximum")}
        return _type({**schema["anyOf"][0], **outer})  # the other is null, which every field takes
    if "$ref" in schema:
        return "object"
    if "enum" in schema:
        return ", ".join(f"`{choice}`" for choice in schema["enum"]) if len(schema["enum"]) < 6 else "a name below"
    if schema["type"] == "array":
        return f"list of {_type(schema['items'])}{_range(schema, 'minItems', 'maxItems')}"
    if "maxLength" in schema:
        return f"{schema['type']}{_range(schema, 'minLength', 'maxLength')} characters"
    above = f", more than {schema['exclusiveMinimum']}" if "exclusiveMinimum" in schema else ""
    return f"{schema['type']}{above}{_range(schema, 'minimum', 'maximum')}"


def _range(schema: Mapping[str, Any], low_name: str, high_name: str) -> str:
    low, high = schema.get(low_name), schema.get(high_name)
    if high == 2**63 - 1:
        high = "2^63 - 1"
    if low is not None and high is not None:
        return f", {low} to {high}"
    return f", at most {high}" if high is not None else f", at least {low}" if low is not None else ""
