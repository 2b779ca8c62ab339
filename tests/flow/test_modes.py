"""Every mode as a caller asks for it: what comes out, and which expert made it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from pytest_httpserver import HTTPServer

from tests.flow.conftest import Runner, local_path, probe, small
from tests.kits.engine_kit import ExpertCounter
from tests.kits.slow import slow
from worker.base.stop import Stop
from worker.media import encode

UNGUIDED = {"guidance_scale": 1.0, "guidance_scale_2": 1.0}  # half of the passes


@pytest.fixture
def clip_url(httpserver: HTTPServer, tmp_path: Path) -> Callable[[int, int], str]:
    """Serves an MP4 of so many frames at so many frames a second, 320 x 192, colours that change."""

    def serve(num_frames: int, fps: int) -> str:
        frames = (np.full((192, 320, 3), (7 * n % 256, 90, 160), np.uint8) for n in range(num_frames))
        made = encode.encode(
            frames, path=tmp_path / "clip.mp4", width=320, height=192, num_frames=num_frames, fps=fps, poster=None
        )
        httpserver.expect_request("/clip.mp4").respond_with_data(made.path.read_bytes(), content_type="video/mp4")
        return httpserver.url_for("/clip.mp4")

    return serve


def frames_of(url: str) -> np.ndarray:
    """float32 [frames, H, W, 3]."""
    with av.open(str(local_path(url))) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(np.float32)


def test_first_and_last_frame(run: Runner, picture_url: str, httpserver: HTTPServer) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (300, 500), "navy").save(stream, "JPEG")
    httpserver.expect_request("/end.jpg").respond_with_data(stream.getvalue())
    both = small(reference_image_url=picture_url, last_image_url=httpserver.url_for("/end.jpg"))
    (video,) = run({"job_id": "both", "job_request_params": [both]})["videos"]
    assert video["mode"] == "first_last_frame"
    assert probe(video["video_url"])[3:] == (256, 256, 5)
    (one,) = run({"job_id": "one", "job_request_params": [small(reference_image_url=picture_url)]})["videos"]
    assert one["sha256"] != video["sha256"]


def test_video_to_video_runs_the_last_steps_on_both_experts(run: Runner, clip_url: Callable[[int, int], str]) -> None:
    request = small(
        reference_video_url=clip_url(12, 16), num_frames=9, num_inference_steps=10, strength=0.8, **UNGUIDED
    )
    run.worker.engine.preload(["t2v"], Stop())
    with ExpertCounter(run.worker.engine, "t2v") as ran:
        (video,) = run(request)["videos"]
    assert video["mode"] == "video_to_video"
    assert video["parameters"]["strength"] == 0.8
    assert probe(video["video_url"])[5] == 9
    assert len(ran.high) + len(ran.low) == 8
    assert ran.high
    assert ran.low
    assert min(ran.high) >= 875.0 > max(ran.low)


@pytest.mark.slow
def test_a_low_strength_stays_near_the_video(run: Runner, clip_url: Callable[[int, int], str]) -> None:
    """The weakest run gives nearly what the VAE makes of the video itself; a seed hardly matters to it."""
    apart = []
    # Without a shift the last of 20 steps begins at 5% noise.
    fields = {"reference_video_url": clip_url(9, 16), "num_inference_steps": 20, "flow_shift": 1.0, **UNGUIDED}
    for strength in (0.05, 0.5, 1.0):
        asked = [small(**fields, strength=strength, seed=seed) for seed in (1, 2)]
        videos = run({"job_id": f"s{strength}", "job_request_params": asked})
        one, other = (frames_of(video["video_url"]) for video in videos["videos"])
        apart.append(np.abs(one - other).mean())
    assert apart[0] < apart[1] < apart[2]
    assert apart[0] < apart[2] / 3


@pytest.mark.parametrize(("frames", "fps", "made"), [(6, 8, 9), *slow((20, 16, 13), (10, 16, 9))])
def test_the_video_is_resampled_and_its_length_bounds_the_answer(
    run: Runner, clip_url: Callable[[int, int], str], frames: int, fps: int, made: int
) -> None:
    request = small(reference_video_url=clip_url(frames, fps), num_frames=13, num_inference_steps=1)
    (video,) = run(request)["videos"]
    assert video["num_frames"] == made
    lowered = [warning for warning in video["warnings"] if "the length of the reference video" in warning]
    assert len(lowered) == (made < 13)


def test_a_video_that_is_too_short_is_refused(run: Runner, clip_url: Callable[[int, int], str]) -> None:
    answer = run(small(reference_video_url=clip_url(3, 16)))
    error = json.loads(answer["error"])
    assert (error["code"], error["path"]) == ("input_invalid", "reference_video_url")


@pytest.mark.slow
def test_turbo_from_a_video(run: Runner, clip_url: Callable[[int, int], str]) -> None:
    request = small(reference_video_url=clip_url(9, 16), quality_preset="turbo", strength=0.75)
    run({"job_id": "warm", "job_request_params": [request]})
    with ExpertCounter(run.worker.engine, "t2v") as ran:
        run({"job_id": "turbo", "job_request_params": [request]})
    assert ran.high + ran.low == pytest.approx([937.5, 833.3, 625.0], abs=0.05)
