"""The benchmark of longer videos sees an object that goes on slowly, one that stands, a step across a join, a loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.long_jobs import MODELS, answered
from benchmarks.long_joins import joined, looped
from benchmarks.quality_cases import asked_scenes
from training.clips import clip
from training.scenes import STRAIGHT
from worker.media.encode import encode

SCENE = replace(next(scene for scene in asked_scenes(20) if scene.motion in STRAIGHT), slow=True)
FIRSTS = (0, 13, 25)


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    return [
        frame
        for first in (0, 16, 32)
        for frame in clip(SCENE, height=128, width=128, first=first)[: 16 if first < 32 else 5]
    ]


def seen(frames: list[np.ndarray], path: Path) -> dict[str, object]:
    encode(frames, path=path, width=128, height=128, num_frames=len(frames), fps=16, poster=None)
    segments = [
        {"first_frame": first, "num_frames": 12 + (first == 0), "seam": 1.0, "color_drift": 0.0} for first in FIRSTS
    ]
    return joined([{"video_url": f"file://{path}", "segments": segments}], [SCENE])


def test_what_goes_on_is_told_from_what_stands(frames: list[np.ndarray], tmp_path: Path) -> None:
    found = seen(frames, tmp_path / "own.mp4")
    assert found["goes_on_by_segment"] == [1, 1, 1]
    assert found["goes_on_to_the_end"] == 1
    assert found["seam_of_latents"] == pytest.approx(1, abs=0.2)
    stands = seen(frames[:25] + [frames[24]] * 12, tmp_path / "stands.mp4")
    assert stands["goes_on_by_segment"] == [1, 1, 0]
    assert stands["goes_on_to_the_end"] == 0


def test_a_jump_at_a_join_is_a_seam(frames: list[np.ndarray], tmp_path: Path) -> None:
    jumps = frames[:13] + [np.roll(frame, 24, axis=0) for frame in frames[13:]]
    assert seen(jumps, tmp_path / "jumps.mp4")["seam_of_latents"] > 1.5


def test_a_loop_is_told_from_a_jump_to_the_beginning(frames: list[np.ndarray], tmp_path: Path) -> None:
    found = []
    for name, video in (("loop", [*frames[:9], *frames[7::-1]]), ("open", frames)):
        path = tmp_path / f"{name}.mp4"
        encode(video, path=path, width=128, height=128, num_frames=len(video), fps=16, poster=None)
        found.append({"video_url": f"file://{path}"})
    loop, jump = looped(found[:1]), looped(found[1:])
    assert (loop["not_larger"], jump["not_larger"]) == (1, 0)
    assert loop["step_worst"] == loop["step_median"] <= 1 < 3 < jump["step_median"]
    assert looped(found)["not_larger"] == 0.5


def test_the_real_model_is_the_operators_and_the_demo_is_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_CACHE_DIR", "/operators")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    real, demo = (MODELS[name].environment(tmp_path) for name in ("wan2.2", "demo"))
    assert (real["MODEL_PROFILE"], real["MODEL_CACHE_DIR"]) == ("wan2.2", "/operators")
    assert (demo["MODEL_PROFILE"], demo["MODEL_CACHE_DIR"]) == ("demo", str(tmp_path / "models"))
    assert "CUDA_VISIBLE_DEVICES" not in demo
    for environment in (real, demo):
        assert environment["STATE_DIR"] == str(tmp_path / "state")


@pytest.mark.slow
def test_a_worker_that_cannot_start_is_an_error_that_says_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(RuntimeError, match="did not start"):
        answered([{"prompt": "a fox"}], tmp_path, "refused", model=MODELS["wan2.2"])
