"""The flags are the contract's fields, and messages come back in their names."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

import pytest

from tests.kits.cli_kit import command
from worker.base.errors import InvalidRequest, Unsupported
from worker.cli import flags
from worker.cli.__main__ import build_parser
from worker.request.parse import parse
from worker.request.payload import VideoInput

# One value other than the default for each field, as it is typed and as it stands in a payload.
TYPED: dict[str, tuple[list[str], Any]] = {
    "prompt": (["a cat"], "a cat"),
    "negative_prompt": ([""], ""),
    "reference_image_url": (["https://example.com/a.png"], "https://example.com/a.png"),
    "last_image_url": (["https://example.com/b.png"], "https://example.com/b.png"),
    "reference_video_url": (["https://example.com/c.mp4"], "https://example.com/c.mp4"),
    "strength": (["0.5"], 0.5),
    "width": (["640"], 640),
    "height": (["352"], 352),
    "resolution": (["720p"], "720p"),
    "aspect_ratio": (["9:16"], "9:16"),
    "num_frames": (["49"], 49),
    "duration_seconds": (["3.5"], 3.5),
    "num_outputs": (["2"], 2),
    "fps": (["24"], 24),
    "num_inference_steps": (["30"], 30),
    "guidance_scale": (["4"], 4.0),
    "guidance_scale_2": (["3.5"], 3.5),
    "guidance_until": (["0.5"], 0.5),
    "flow_shift": (["8"], 8.0),
    "seed": (["0"], 0),
    "camera_motion": (["pan_left"], "pan_left"),
    "enhance_prompt": ([], False),
    "quality_preset": (["draft"], "draft"),
    "turbo_variant": (["hybrid"], "hybrid"),
    "step_cache": (["fast"], "fast"),
    "model": (["5b"], "5b"),
    "loras": (["a.safetensors:0.8:high"], [{"source": "a.safetensors", "scale": 0.8, "expert": "high"}]),
    "thumbnail": ([], False),
    "target_fps": (["60"], 60),
    "prompt_expansion": ([], True),
    "output_format": (["webm"], "webm"),
    "output_codec": (["vp9"], "vp9"),
    "video_quality": (["low"], "low"),
    "frames_zip": ([], True),
    "response_format": (["base64"], "base64"),
    "upload_url": (["https://example.com/put"], "https://example.com/put"),
    "preview": (["strip"], "strip"),
    "preview_at": (["0.2,0.5"], [0.2, 0.5]),
    "preview_only": ([], True),
    "segments": (['[{"num_frames": 9}, {}]'], [{"num_frames": 9}, {}]),
    "continuity": (["keyframes"], "keyframes"),
    "overlap_frames": (["5"], 5),
    "extend_video_url": (["https://example.com/d.mp4"], "https://example.com/d.mp4"),
    "loop": ([], True),
    "color_match": ([], False),
}


def chosen(*arguments: str, name: str = "generate") -> argparse.Namespace:
    return build_parser().parse_args([name, *arguments])


def test_every_field_of_a_video_request_has_a_flag() -> None:
    assert set(flags.FLAGS) == set(VideoInput.model_fields) == set(TYPED)


@pytest.mark.parametrize("name", ["generate", "submit"])
@pytest.mark.parametrize("field", list(VideoInput.model_fields))
def test_every_name_of_a_flag_sets_its_field(field: str, name: str) -> None:
    values, expected = TYPED[field]
    more = ["--endpoint", "e"] if name == "submit" else []
    more += ["--prompt", "a"] if field != "prompt" else []
    for flag in flags.FLAGS[field]:
        fields = flags.given(chosen(*more, flag, *values, name=name))
        assert fields[field] == expected
        assert type(fields[field]) is type(expected)
        assert set(fields) == {"prompt", field}


def test_the_name_of_the_field_is_a_flag_too() -> None:
    for field, names in flags.FLAGS.items():
        own = field.replace("_", "-")
        assert f"--{own}" in names or f"--no-{own}" in names, field


def test_what_is_not_given_is_not_sent() -> None:
    assert flags.given(chosen("--prompt", "a")) == {"prompt": "a"}


def test_several_loras_keep_their_order() -> None:
    fields = flags.given(chosen("--prompt", "a", "--lora", "a.safetensors", "--lora", "O/R/b.safetensors:-1"))
    assert fields["loras"] == [{"source": "a.safetensors"}, {"source": "O/R/b.safetensors", "scale": -1.0}]


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("https://h.example:8080/a.safetensors", {"source": "https://h.example:8080/a.safetensors"}),
        ("https://h.example/a.safetensors:1.5:both", {"scale": 1.5, "expert": "both"}),
        ("a.safetensors:.5", {"scale": 0.5}),
    ],
)
def test_a_lora_is_read(text: str, entry: dict[str, Any]) -> None:
    assert flags.lora(text) == {"source": flags.lora(text)["source"], **entry}
    assert flags.lora(text)["source"].endswith("a.safetensors")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("generate --prompt a --lora a.safetensors:strong", "--lora: write SOURCE[:SCALE[:EXPERT]]"),
        ("generate --prompt a --lora a.safetensors:0.8:middle", "--lora: write SOURCE"),
        ("generate --prompt a --lora ''", "--lora: write SOURCE"),
        ("generate --prompt a --width wide", "--width: must be a whole number, not 'wide'"),
        ("generate --prompt a --width 640.5", "--width: must be a whole number, not '640.5'"),
        ("generate --prompt a --strength nan", "--strength: must be a number, not 'nan'"),
        ("generate --prompt a --flow-shift inf", "--flow-shift: must be a number, not 'inf'"),
        ("generate --prompt a --steps x", "--steps: must be a whole number, not 'x'"),
        (
            "generate --prompt a --preset drft",
            "--preset: 'drft' is none of draft, standard, high, ultra, turbo; did you",
        ),
        ("generate --prompt a --model 14b", "--model: '14b' is none of a14b, 5b; did you mean a14b?"),
        ("generate --prompt a --camera-motion pan", "--camera-motion: 'pan' is none of pan_left, "),
        ("generate --prompt a --gpu-hourly-usd -1", "--gpu-hourly-usd: must be 0 or more, not -1"),
        ("generate --prompt a --gpu A100 --dry-run", "--gpu: 'A100' may be A100 40GB or A100 80GB: write which"),
        ("generate --prompt a --widht 3", "no flag --widht; did you mean --width?"),
        ("generate --prompt a --out=x.mp4 --heigth=3", "no flag --heigth; did you mean --height?"),
        ("generate --promp a", "no flag --promp; did you mean --prompt?"),
        ("generate --prompt a --colour red", "no flag --colour (flags: videogen generate --help)"),
        ("generate --prompt a b", "unrecognized arguments: b"),
        ("generate --prompt", "--prompt: expected one argument"),
        ("generate", "the following arguments are required: --prompt"),
        ("submit --prompt a", "the following arguments are required: --endpoint"),
        ("submit --endpoint http://x/y --prompt a", "--endpoint: write the endpoint's id or its URL, such as https://"),
        ("doctor --jsno", "no flag --jsno; did you mean --json?"),
        (
            "plan --gpu L40S",
            "no command 'plan'; the commands are generate, submit, route, train, calibrate, doctor, verify, plans, "
            "schema; did",
        ),
        (
            "paint",
            "no command 'paint'; the commands are generate, submit, route, train, calibrate, doctor, verify, plans, "
            "schema\n",
        ),
        ("--gpu L40S", "no command '--gpu'; the commands are generate, "),
    ],
)
def test_wrong_use_is_one_line_that_says_what_to_write(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done = command(capsys, *shlex.split(words))
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"error: {said}")
    assert done.err.count("\n") == 1


def test_a_value_that_looks_like_a_flag_is_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert chosen("--prompt=--width").prompt == "--width"
    done = command(capsys, "generate", "--prompt", "-- a line of a poem", "--dry-run", "--gpu", "L40S", "--no-enhance")
    assert done.status == 0
    assert "-- a line of a poem" in done.out


@pytest.mark.parametrize(
    "text",
    [
        "abc123",
        "https://api.runpod.ai/v2/abc123",
        "https://api.runpod.ai/v2/abc123/run",
        "https://abc123.api.runpod.ai/health",
        "https://console.runpod.io/serverless/user/endpoint/abc123?tab=overview",
        "https://www.runpod.io/console/serverless/user/endpoint/abc123",
    ],
)
def test_an_endpoint_is_its_id_or_its_url(text: str) -> None:
    assert chosen("--endpoint", text, "--prompt", "a", name="submit").endpoint == "abc123"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("prompt: is missing", "--prompt: is missing"),
        (
            "num_frames: 82 lowered to 81 (the model makes 4k + 1 frames)",
            "--num-frames: 82 lowered to 81 (the model makes 4k + 1 frames)",
        ),
        (
            "last_image_url: needs reference_image_url beside it, for the first frame",
            "--last-image: needs --image beside it, for the first frame",
        ),
        ("loras[0].source: no such file", "--lora: no such file"),
        ("width: too wide; height: too high", "--width: too wide; --height: too high"),
        ("guidance_scale_2: is not guidance_scale", "--guidance-scale-2: is not --guidance-scale"),
        ("the model and its seed stay as they are", "the model and its seed stay as they are"),
        ("my_num_frames_x and a/num_frames", "my_num_frames_x and a/num_frames"),
    ],
)
def test_messages_name_the_flags(message: str, shown: str) -> None:
    assert flags.in_flags(message) == shown


def test_every_problem_has_its_line() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse({"prompt": "", "width": 100, "strength": 3.0}, default_job_id="a")
    lines = flags.message_of(caught.value).splitlines()
    assert [line.split(":")[1].strip() for line in lines] == ["--prompt", "--strength", "--width"]
    assert (
        flags.message_of(Unsupported("turbo is not served", path="quality_preset"))
        == "error: --preset: turbo is not served"
    )
