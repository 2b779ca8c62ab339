"""What the form of the page means, without a browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from videogen_client import VideoFailed
from videogen_client.page.fields import FieldsWrong, Form, as_curl, as_flags, as_json, choices, errors_of, payload_of
from worker.cli.__main__ import build_parser


def test_an_empty_form_asks_for_the_models_own(tmp_path: Path) -> None:
    assert payload_of(Form(prompt=" a fox ")) == {"prompt": "a fox"}


def test_everything_that_is_filled_in_is_sent(tmp_path: Path) -> None:
    picture = tmp_path / "a.jpg"
    picture.write_bytes(b"\xff\xd8\xff")
    form = Form(
        prompt="a fox",
        picture=str(picture),
        size="832x480",
        seconds="2.5",
        preset="draft",
        camera="static",
        loras="a.safetensors 0.8 high\nowner/repo/b.safetensors",
        steps="4",
        seed="0",
        more='{"fps": 8, "thumbnail": false}',
    )
    payload = payload_of(form)
    assert payload == {
        "prompt": "a fox",
        "width": 832,
        "height": 480,
        "duration_seconds": 2.5,
        "quality_preset": "draft",
        "camera_motion": "static",
        "num_inference_steps": 4,
        "seed": 0,
        "loras": [{"source": "a.safetensors", "scale": 0.8, "expert": "high"}, {"source": "owner/repo/b.safetensors"}],
        "fps": 8,
        "thumbnail": False,
        "reference_image_url": "data:image/jpeg;base64,/9j/",
    }
    flags = as_flags(payload, form.picture)
    read = build_parser().parse_args(["generate", "--dry-run", *flags])
    assert (read.prompt, read.num_inference_steps, read.seed, read.camera_motion) == ("a fox", 4, 0, "static")
    assert read.loras[0] == {"source": "a.safetensors", "scale": 0.8, "expert": "high"}
    assert flags[flags.index("--image") + 1] == str(picture)


def test_what_cannot_be_read_is_said_at_its_field() -> None:
    with pytest.raises(FieldsWrong) as caught:
        payload_of(Form(size="large", seconds="long", steps="x", loras="a 1 high low", more="[1]"))
    assert set(caught.value.messages) == {"prompt", "size", "seconds", "steps", "loras", "more"}


@pytest.mark.parametrize(
    ("failure", "at", "rest"),
    [
        (
            VideoFailed("invalid_request", "width: must be 256 to 1920, not 8; num_inference_steps: must be 1 to 100"),
            {"size": "width: must be 256 to 1920, not 8", "steps": "must be 1 to 100"},
            "nothing was made: see the field",
        ),
        (
            VideoFailed(
                "x", "both", problems=[{"path": "job_request_params[0].loras[1].source", "message": "too long"}]
            ),
            {"loras": "loras[1].source: too long"},
            "nothing was made: see the field",
        ),
        (VideoFailed("invalid_request", "fps: must be 1 to 60"), {"more": "fps: must be 1 to 60"}, None),
        (VideoFailed("internal", "it failed; try again: soon"), {}, "it failed; try again: soon"),
    ],
)
def test_an_error_of_the_worker_finds_its_field(failure: VideoFailed, at: dict[str, str], rest: str | None) -> None:
    found = errors_of(failure)
    assert found[0] == at
    assert rest is None or found[1] == rest


def test_the_request_can_be_copied_without_key_or_picture() -> None:
    payload = {"prompt": "it's a fox", "reference_image_url": "data:image/png;base64," + "A" * 500}
    assert len(as_json(payload)) < 200
    curl = as_curl(payload, "https://api.runpod.ai/v2/abc", is_local=False)
    assert "$RUNPOD_API_KEY" in curl
    assert "/abc/run " in curl
    assert "it'\"'\"'s a fox" in curl
    assert "AAAA" not in curl
    assert "Authorization" not in as_curl(payload, "http://127.0.0.1:1", is_local=True)


def test_names_come_from_the_types() -> None:
    assert choices("quality_preset") == ["draft", "standard", "high", "ultra", "turbo"]
    assert "orbit_left" in choices("camera_motion")
