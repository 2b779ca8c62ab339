"""LoRAs as a caller asks for them: in effect for their video, gone for the next, refused by the field's name."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer

from tests.flow.conftest import Make, Runner, small
from tests.kits import lora_kit
from worker.base.stop import Stop


@pytest.fixture
def lora_file(run: Runner, tmp_path: Path) -> Path:
    engine = run.worker.engine
    engine.preload(["t2v"], Stop())
    pairs = lora_kit.factors(engine.models["t2v"].components.transformer, "blocks.0.attn1.to_q", "blocks.0.ffn.net.2")
    return lora_kit.saved(tmp_path, lora_kit.as_diffusers(pairs), "style")


@pytest.mark.slow  # tests/unit/engine/test_lora_apply.py has both
def test_a_lora_changes_its_video_and_not_the_next(run: Runner, lora_file: Path, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/style.safetensors").respond_with_data(lora_file.read_bytes())
    source = httpserver.url_for("/style.safetensors")
    steps = {"num_inference_steps": 8}  # of which three are the low-noise expert's
    requests = [
        small(**steps),
        small(**steps, loras=[{"source": source, "scale": 4.0}]),
        small(**steps, loras=[{"source": source, "scale": 4.0, "expert": "high"}]),
        small(**steps, loras=[{"source": source, "scale": 2.0}, {"source": source, "scale": 2.0}]),
        small(**steps),
    ]
    videos = run({"job_request_params": requests})["videos"]
    plain, both, high, twice, after = (video["sha256"] for video in videos)
    assert plain == after
    assert len({plain, both, high}) == 3
    assert twice != plain
    assert videos[1]["parameters"]["loras"] == [{"scale": 4.0, "expert": "both"}]


def test_an_operators_file_is_found_by_its_name(make_runner: Make, lora_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    lora_file.rename(folder / "house-style.safetensors")
    run = make_runner({})
    assert run(small(loras=[{"source": "house-style.safetensors"}]))["status"] == "completed"
    answer = run(small(loras=[{"source": "other.safetensors"}]), job_id="other")
    error = json.loads(answer["error"])
    assert (error["code"], error["path"]) == ("unsupported", "loras[0].source")
    assert "house-style.safetensors" in error["message"]


def test_what_is_no_lora_is_refused_and_the_other_videos_are_made(
    run: Runner, lora_file: Path, httpserver: HTTPServer
) -> None:
    httpserver.expect_request("/evil.safetensors").respond_with_data(pickle.dumps({"weights": 1}, protocol=4))
    httpserver.expect_request("/style.safetensors").respond_with_data(lora_file.read_bytes())
    answer = run(
        {
            "job_request_params": [
                small(loras=[{"source": httpserver.url_for("/evil.safetensors")}]),
                small(model="5b", loras=[{"source": httpserver.url_for("/style.safetensors"), "expert": "low"}]),
                small(),
            ]
        }
    )
    errors = [video.get("error", {}) for video in answer["videos"]]
    assert [error.get("code") for error in errors] == ["input_invalid", "unsupported", None]
    assert errors[0]["path"] == "job_request_params[0].loras[0].source"
    assert "pickle" in errors[0]["message"]
    # An address that may not be reached refuses the whole job.
    refused = json.loads(run(small(loras=[{"source": "http://169.254.169.254/a.safetensors"}]))["error"])
    assert (refused["code"], refused["path"]) == ("input_blocked", "loras[0].source")
