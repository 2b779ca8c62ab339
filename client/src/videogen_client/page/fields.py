"""What the form of the page means: the payload of a job, the same as curl, and which field an error is about."""

from __future__ import annotations

import base64
import json
import mimetypes
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ..errors import VideoFailed
from ..types import SingleVideoInput

# The fields of the form, in the order in which the page passes their values on.
FIELDS = ("prompt", "picture", "size", "seconds", "preset", "camera", "loras", "steps", "seed", "more")
SIZES = ("832x480", "480x832", "1024x576", "576x1024", "1280x720", "720x1280", "256x256")
_WHERE = {
    "reference_image_url": "picture",
    "width": "size",
    "height": "size",
    "duration_seconds": "seconds",
    "num_frames": "seconds",
    "quality_preset": "preset",
    "camera_motion": "camera",
    "num_inference_steps": "steps",
}
_TYPES = get_type_hints(SingleVideoInput)
_PLAIN = ("picture", "seconds", "preset", "camera", "steps")  # the label says which field it is
# RunPod's local API passes on the message alone: the problems, each with its path, in one line.
_BETWEEN = re.compile(r"; (?=[a-z_][\w.\[\]]*: )")
_SIZE = re.compile(r"(\d{2,5})x(\d{2,5})")


class FieldsWrong(Exception):
    """`messages` by the field of the form."""

    def __init__(self, messages: Mapping[str, str]) -> None:
        super().__init__("; ".join(messages.values()))
        self.messages = messages


@dataclass(frozen=True)
class Form:
    """What is filled in, as text; "" where nothing is. `picture` is the path of a file."""

    prompt: str = ""
    picture: str = ""
    size: str = ""
    seconds: str = ""
    preset: str = ""
    camera: str = ""
    loras: str = ""
    steps: str = ""
    seed: str = ""
    more: str = ""


def choices(field: str) -> list[str]:
    """The values that the worker knows for a field that is one of some names."""
    return [name for kind in get_args(_TYPES[field]) for name in get_args(kind)]


def payload_of(form: Form) -> dict[str, Any]:
    """What is sent as `input`. Raises FieldsWrong for what cannot be read; the rest is for the worker to say."""
    wrong: dict[str, str] = {}
    payload: dict[str, Any] = {"prompt": form.prompt.strip()}
    if not payload["prompt"]:
        wrong["prompt"] = "write what the video shows"
    if form.size:
        found = _SIZE.fullmatch(form.size.strip())
        if found is None:
            wrong["size"] = "write WIDTHxHEIGHT in pixels, as in 832x480"
        else:
            payload |= {"width": int(found[1]), "height": int(found[2])}
    payload |= {"quality_preset": form.preset} if form.preset else {}
    payload |= {"camera_motion": form.camera} if form.camera else {}
    numbers = {"duration_seconds": form.seconds, "num_inference_steps": form.steps, "seed": form.seed}
    for name, text in numbers.items():
        try:
            payload |= {name: json.loads(text)} if text.strip() else {}
        except ValueError:
            wrong[_WHERE.get(name, name)] = "write a number"
    try:
        if loras := [_lora(line) for line in form.loras.splitlines() if line.strip()]:
            payload["loras"] = loras
    except ValueError:
        wrong["loras"] = "write one LoRA a line: SOURCE, then its scale, then high or low, with spaces between"
    try:
        more = json.loads(form.more) if form.more.strip() else {}
        payload |= more if isinstance(more, dict) else dict[str, Any](more)
    except (ValueError, TypeError):
        wrong["more"] = "write a JSON object"
    if wrong:
        raise FieldsWrong(wrong)
    if form.picture:
        payload["reference_image_url"] = data_uri(Path(form.picture))
    return payload


def _lora(line: str) -> dict[str, Any]:
    """`SOURCE [SCALE [EXPERT]]`. Raises ValueError."""
    source, *rest = line.split()
    if len(rest) > 2:
        raise ValueError(line)
    return {
        "source": source,
        **({"scale": float(rest[0])} if rest else {}),
        **({"expert": rest[1]} if rest[1:] else {}),
    }


def data_uri(picture: Path) -> str:
    kind = mimetypes.guess_type(picture.name)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(picture.read_bytes()).decode('ascii')}"


def errors_of(failure: VideoFailed) -> tuple[dict[str, str], str]:
    """The messages by field of the form, and what is left to be said of the whole request."""
    found = failure.problems or [
        {"path": part.partition(": ")[0], "message": part} for part in _BETWEEN.split(failure.message)
    ]
    at: dict[str, str] = {}
    rest = []
    for problem in found:
        path = str(problem["path"] or "").removeprefix("job_request_params[0].")
        message = str(problem["message"]).removeprefix(f"{path}: ")
        name = re.split(r"[.\[]", path)[0]
        where = _WHERE.get(name, name if name in FIELDS else "more" if name in _TYPES else "")
        if where:
            at.setdefault(where, message if path in FIELDS or where in _PLAIN else f"{path}: {message}")
        else:
            rest.append(str(problem["message"]))
    return at, "; ".join(rest) or "nothing was made: see the field"


def as_json(payload: Mapping[str, Any]) -> str:
    """To read: a picture is cut to its beginning."""
    shown = {
        name: f"{value[:60]}..." if isinstance(value, str) and value.startswith("data:") else value
        for name, value in payload.items()
    }
    return json.dumps({"input": shown}, indent=2, ensure_ascii=False)


def as_curl(payload: Mapping[str, Any], url: str, *, is_local: bool) -> str:
    """To copy. Never the API key."""
    if "reference_image_url" in payload:
        payload = {**payload, "reference_image_url": "https://example.com/picture.png"}
    body = json.dumps({"input": payload}, ensure_ascii=False)
    key = "" if is_local else ' \\\n  -H "Authorization: Bearer $RUNPOD_API_KEY"'
    verb = "runsync" if is_local else "run"
    return f"curl {url}/{verb}{key} \\\n  -H 'Content-Type: application/json' \\\n  -d {shlex.quote(body)}"


def as_flags(payload: Mapping[str, Any], picture: str) -> list[str]:
    """The same for the command `videogen generate`."""
    flags: list[str] = []
    for name, value in payload.items():
        flag = f"--{name.replace('_', '-')}"
        if name == "reference_image_url" and picture:
            flags += ["--image", picture]
        elif name == "loras":
            for lora in value:
                parts = [lora["source"], lora.get("scale"), lora.get("expert")]
                flags += [flag, ":".join(str(part) for part in parts if part is not None)]
        elif isinstance(value, bool):
            flags += [flag] if value else []
        elif not isinstance(value, list | dict):
            flags.append(f"{flag}={value}")
    return flags
