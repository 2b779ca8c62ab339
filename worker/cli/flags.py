"""The flags of a video request, one for each field of the contract, and back: messages in the words of the flags."""

from __future__ import annotations

import argparse
import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from worker.base.errors import WorkerError
from worker.request.payload import VideoInput
from worker.request.plan import Gpu, from_name

# The name that messages use, where it is not the field's own, which is always accepted.
_SHORT: Mapping[str, str] = {
    "reference_image_url": "--image",
    "last_image_url": "--last-image",
    "reference_video_url": "--video",
    "num_inference_steps": "--steps",
    "enhance_prompt": "--no-enhance",
    "quality_preset": "--preset",
    "loras": "--lora",
}
_ALSO: Mapping[str, str] = {"num_frames": "--frames"}


def _kind(field: str) -> Any:
    """The plain type of a field of the request: str, int, float, bool, a list or a Literal."""
    annotation: Any = VideoInput.model_fields[field].annotation
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (part for part in get_args(annotation) if part is not NoneType)
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _names(field: str) -> tuple[str, ...]:
    """The flags of a field, the first being the one that messages use. What is on by default is turned off."""
    negated = "no-" if VideoInput.model_fields[field].default is True else ""
    own = f"--{negated}{field.replace('_', '-')}"
    return tuple(dict.fromkeys(name for name in (_SHORT.get(field, own), own, _ALSO.get(field)) if name is not None))


FLAGS: Mapping[str, tuple[str, ...]] = {field: _names(field) for field in VideoInput.model_fields}
_HELP: Mapping[str, str] = {
    "negative_prompt": 'what to avoid; Wan\'s own list where not given, "" for none',
    "reference_image_url": "the first frame: a file, or an http(s) URL; makes it image-to-video",
    "last_image_url": "the last frame, beside --image: a file or a URL",
    "reference_video_url": "video-to-video: a file (generate only) or an http(s) URL",
    "num_frames": "81 where not given, about 5 seconds; 4k + 1",
    "num_inference_steps": "denoising steps; 50 where not given",
    "guidance_scale": "high-noise expert; 5.0 where not given, 1 for no guidance",
    "guidance_scale_2": "low-noise expert; as --guidance-scale where not given",
    "guidance_until": "the share of the steps that are guided, 1 where not given: fewer are faster, and not exact",
    "camera_motion": "a camera move, put into the words that the model knows",
    "enhance_prompt": "leave the prompt as it is",
    "quality_preset": "steps and guidance at once, which overrules both",
    "turbo_variant": "with --preset turbo; hybrid leaves the high-noise expert undistilled and guided, for more motion",
    "step_cache": "leave out work in steps that change little: faster, and not exact",
    "model": "the model, a14b where not given",
    "loras": "a LoRA, with its scale and expert (high, low, both); may be given several times",
    "thumbnail": "no JPEG poster beside the video",
}
_ENDPOINT_URL = re.compile(r"^https?://(?:[^?#]*?/(?:v2|endpoint)/([^/?#]+)|([A-Za-z0-9_-]+)\.api\.runpod\.)")
_LORA = re.compile(r"(?P<source>.+?)(?::(?P<scale>[-+]?(?:\d+\.?\d*|\.\d+))(?::(?P<expert>high|low|both))?)?")
# A field as the worker's messages name it: `loras[0].source`; a name of one word only where a message begins with it.
_WORDS = "|".join(sorted((name for name in FLAGS if "_" not in name), key=len, reverse=True))
_NAMES = "|".join(sorted((name for name in FLAGS if "_" in name), key=len, reverse=True))
_FIELD = re.compile(
    rf"(?<![\w./-])(?:({_NAMES})(?![\w-])|(?:(?<=^)|(?<=; ))({_WORDS})(?=[:.\[]))((?:\[\d+\])?(?:\.\w+)?)"
)


def add_to(parser: argparse.ArgumentParser, *, prompt_required: bool) -> None:
    """Add a flag for every field of a video request."""
    group = parser.add_argument_group("the video")
    for field, names in FLAGS.items():
        description = VideoInput.model_fields[field].description or ""
        text = _HELP.get(field, description[:1].lower() + description[1:]).replace("%", "%%")
        options: dict[str, Any] = {"dest": field, "help": text, "default": None}
        kind = _kind(field)
        if kind is bool:
            options |= {"action": "store_const", "const": not VideoInput.model_fields[field].default}
        elif field == "loras":
            options |= {"action": "append", "type": lora, "metavar": "SOURCE[:SCALE[:EXPERT]]"}
        elif field == "preview_at":
            options |= {"type": shares, "metavar": "SHARE[,SHARE]"}
        elif field == "segments":
            options |= {"type": objects, "metavar": "JSON"}
        elif get_origin(kind) is Literal:
            choices = get_args(kind)
            options |= {"type": one_of(choices), "metavar": "NAME", "help": f"{text}: {', '.join(map(str, choices))}"}
        else:
            options |= {"type": _READERS[kind], "metavar": _metavar(field, kind)}
        group.add_argument(*names, required=field == "prompt" and prompt_required, **options)


def _metavar(field: str, kind: Any) -> str:
    if field.endswith("_url"):
        return "PATH|URL"
    return "TEXT" if kind is str else "N"


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from None


def number(text: str) -> float:
    with suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    raise argparse.ArgumentTypeError(f"must be a number, not {text!r}")


def shares(text: str) -> list[float]:
    return [number(part) for part in text.split(",")]


def objects(text: str) -> list[Any]:
    """A list of objects, written as JSON."""
    with suppress(ValueError):
        if isinstance(value := json.loads(text), list):
            return value
    raise argparse.ArgumentTypeError('write a list as JSON, such as \'[{"prompt": "..."}, {"num_frames": 49}]\'')


_READERS: Mapping[type, Callable[[str], Any]] = {int: whole, float: number, str: str}


def price(text: str) -> float:
    value = number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {text}")
    return value


def seconds(text: str) -> float:
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be more than 0, not {text}")
    return value


def one_of(values: Sequence[str | int]) -> Callable[[str], str | int]:
    """A type of argparse for one of `values`."""
    named = {str(value): value for value in values}

    def choose(text: str) -> str | int:
        if text not in named:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(named)}{did_you_mean(text, named)}")
        return named[text]

    return choose


def did_you_mean(text: str, names: Iterable[str]) -> str:
    """The end of a message about `text`; empty where none of `names` resembles it."""
    close = difflib.get_close_matches(text, names, 1, cutoff=0.75)
    return f"; did you mean {close[0]}?" if close else ""


def gpu(text: str) -> Gpu:
    """A GPU of the table, for which no such GPU has to be here."""
    try:
        return from_name(text)
    except KeyError as unknown:
        raise argparse.ArgumentTypeError(unknown.args[0]) from None


def endpoint_id(text: str) -> str:
    """The id in an endpoint's URL (of its API, of its own host, or of the console), or the id itself."""
    found = _ENDPOINT_URL.search(text)
    name = (found[1] or found[2]) if found else text
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise argparse.ArgumentTypeError(
            f"write the endpoint's id or its URL, such as https://api.runpod.ai/v2/ID, not {text!r}"
        )
    return name


def lora(text: str) -> dict[str, Any]:
    """SOURCE[:SCALE[:EXPERT]] as an entry of `loras`. The source may be a URL with a port."""
    found = _LORA.fullmatch(text)
    if found is None or ":" in found["source"].rpartition("/")[2]:
        raise argparse.ArgumentTypeError(
            f"write SOURCE[:SCALE[:EXPERT]], such as style.safetensors:0.8:high, not {text!r}"
        )
    entry: dict[str, Any] = {"source": found["source"]}
    if found["scale"] is not None:
        entry["scale"] = float(found["scale"])
    if found["expert"] is not None:
        entry["expert"] = found["expert"]
    return entry


def given(chosen: argparse.Namespace) -> dict[str, Any]:
    """The fields that the command gives, as they stand in a payload; files are still paths."""
    return {field: value for field in FLAGS if (value := getattr(chosen, field)) is not None}


def in_flags(text: str) -> str:
    """A message of the worker with its fields named as the flags that set them."""
    return _FIELD.sub(lambda found: FLAGS[found[1] or found[2]][0], text)


def message_of(error: WorkerError) -> str:
    """What went wrong, a line for each problem."""
    problems = getattr(error, "problems", None) or (error,)
    return "\n".join(f"error: {in_flags(str(problem))}" for problem in problems)


def is_file(source: str) -> bool:
    """Whether an image or video is meant as a file of this machine: everything but http, https and data URLs."""
    return re.match(r"(?:https?|data):", source, re.IGNORECASE) is None
