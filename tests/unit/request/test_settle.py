"""Frames, rates, outputs and the demo model's defaults of a video request."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kits.request_kit import IMAGE, VIDEO, flat_problems, flat_video
from worker.base.errors import InvalidRequest
from worker.request import CATALOGUE, Limits, choose
from worker.request.catalogue import DEMO_CATALOGUE, DEMO_EXTENT
from worker.request.parse import parse
from worker.request.payload import MAX_SEED
from worker.request.settle import MAX_INTERPOLATED_FRAMES

# --- frames


@pytest.mark.parametrize(
    ("fields", "frames"),
    [
        ({"duration_seconds": 5}, 81),
        ({"duration_seconds": 5.0625}, 81),
        ({"duration_seconds": 5.2}, 85),
        ({"duration_seconds": 1, "fps": 8}, 9),
        ({"duration_seconds": 5, "model": "5b"}, 121),
        ({"duration_seconds": 0.3}, 5),
        ({"duration_seconds": 10}, 161),
        ({"duration_seconds": 10, "num_frames": None}, 161),
    ],
)
def test_seconds_are_the_nearest_number_of_frames(fields: dict[str, object], frames: int) -> None:
    assert flat_video(**fields).num_frames == frames


@pytest.mark.parametrize(
    ("seconds", "fields", "most", "holds"),
    [
        (0.18, {}, "10.06", "one clip has 5 to 161 frames, at 16 fps"),
        (
            10.2,
            {"reference_video_url": VIDEO},
            "10.06",
            "one clip has 5 to 161 frames, at 16 fps",
        ),
        (62.5, {}, "62.31", "one video has 5 to 997 frames, at 16 fps"),
        (1e300, {}, "62.31", "one video has 5 to 997 frames, at 16 fps"),
    ],
)
def test_seconds_that_cannot_be_made_are_refused(
    seconds: float, fields: dict[str, object], most: str, holds: str
) -> None:
    message = flat_problems(duration_seconds=seconds, **fields)["duration_seconds"]
    assert message.startswith(f"must be 0.31 to {most}, not ")
    assert message.endswith(holds)


def test_a_lower_limit_of_frames_bounds_the_seconds_too() -> None:
    assert flat_video(Limits(max_frames=80), duration_seconds=5).num_frames == 77
    assert flat_problems(Limits(max_frames=79, max_total_frames=79), duration_seconds=5).keys() == {"duration_seconds"}


def test_seconds_and_frames_exclude_each_other() -> None:
    assert flat_problems(duration_seconds=5, num_frames=81) == {
        "duration_seconds": "cannot stand beside num_frames; send one of the two"
    }


# --- rates


@pytest.mark.parametrize(("model", "own", "other"), [("a14b", 16, 24), ("5b", 24, 16)])
def test_another_rate_than_the_models_own_changes_the_speed_of_motion(model: str, own: int, other: int) -> None:
    assert flat_video(model=model, fps=own).warnings == ()
    (line,) = flat_video(model=model, fps=other).warnings
    assert line == (
        f"fps: {other} is not the model's own rate of {own}: motion has another speed; target_fps leaves it"
    )


@pytest.mark.parametrize(
    ("fields", "taken"),
    [
        ({"target_fps": 17}, True),
        ({"target_fps": 60}, True),
        ({"target_fps": 16}, False),
        ({"target_fps": 61}, False),
        ({"target_fps": 25, "model": "5b"}, True),
        ({"target_fps": 24, "model": "5b"}, False),
        ({"fps": 4, "target_fps": 49}, True),  # 81 frames become 992
        ({"fps": 4, "target_fps": 50}, False),
    ],
)
def test_the_rate_to_which_frames_are_interpolated(fields: dict[str, Any], taken: bool) -> None:
    if taken:
        video = flat_video(**fields)
        assert video.output.target_fps == fields["target_fps"]
        assert video.num_frames * fields["target_fps"] // video.fps <= MAX_INTERPOLATED_FRAMES
    else:
        assert flat_problems(**fields).keys() == {"target_fps"}


# --- outputs and seeds


@pytest.mark.parametrize(
    ("seed", "seeds"),
    [
        (5, [5, 6, 7]),
        (None, [7, 8, 9]),
        (-1, [7, 8, 9]),
        (-1.0, [7, 8, 9]),
        (MAX_SEED - 1, [MAX_SEED - 1, MAX_SEED, 0]),
    ],
)
def test_outputs_are_videos_of_following_seeds(seed: float | None, seeds: list[int]) -> None:
    fields = {"prompt": "a cat", "num_outputs": 3, "seed": seed}
    videos = parse(fields, default_job_id="j", new_seed=lambda: 7).videos
    assert [(video.index, video.seed) for video in videos] == list(enumerate(seeds))
    assert {(video.prompt, video.path) for video in videos} == {("a cat", "")}


def test_outputs_count_as_videos_and_keep_the_order() -> None:
    payload = {"job_request_params": [{"prompt": "a", "num_outputs": 2, "seed": 1}, {"prompt": "b", "seed": 9}]}
    videos = parse(payload, default_job_id="j", limits=Limits(max_videos_per_job=3)).videos
    assert [(video.index, video.prompt, video.seed) for video in videos] == [(0, "a", 1), (1, "a", 2), (2, "b", 9)]
    with pytest.raises(InvalidRequest) as caught:
        parse(payload, default_job_id="j", limits=Limits(max_videos_per_job=2))
    assert str(caught.value) == "job_request_params: asks for 3 videos; send at most 2 in one job"
    assert flat_problems(Limits(max_videos_per_job=1), num_outputs=2) == {
        "num_outputs": "asks for 2 videos; send at most 1 in one job"
    }


def test_an_address_for_one_video_does_not_take_several() -> None:
    assert flat_video(upload_url=IMAGE).output.upload_url == IMAGE
    assert flat_problems(upload_url=IMAGE, num_outputs=2).keys() == {"upload_url"}


# --- the demo model


@pytest.mark.parametrize(
    "fields", [{}, {"reference_image_url": IMAGE}, {"reference_video_url": IMAGE}, {"resolution": None}]
)
def test_what_is_not_given_is_what_the_demo_model_was_trained_for(fields: dict[str, object]) -> None:
    video = flat_video(catalogue=DEMO_CATALOGUE, **fields)
    size = (None, None) if fields.get("resolution", 0) == 0 and fields else (256, 256)
    assert (video.width, video.height) == size
    assert size == (256, 256) or video.area == 320 * 256
    assert (video.num_frames, video.num_inference_steps, video.guidance_scale) == (17, 12, 3.0)
    assert video.warnings == ()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"width": 320, "height": 256, "num_frames": 21}, None),
        ({"num_frames": 13}, None),
        ({"width": 336, "height": 256}, "width"),
        ({"resolution": "480p", "reference_image_url": IMAGE}, "width"),
        ({"num_frames": 25}, "num_frames"),
        ({"num_frames": 9}, "num_frames"),
        ({"model": "5b"}, "model"),
    ],
)
def test_a_request_beyond_the_demo_models_training_is_told_so(fields: dict[str, object], field: str | None) -> None:
    warnings = flat_video(catalogue=DEMO_CATALOGUE, **fields).warnings
    assert [line.split(":")[0] for line in warnings] == ([] if field is None else [field])
    assert all("moving colour" in line for line in warnings)


def test_what_is_told_is_what_is_chosen() -> None:
    video = flat_video(catalogue=DEMO_CATALOGUE)
    assert choose(DEMO_CATALOGUE, video).extent == DEMO_EXTENT
    assert DEMO_EXTENT.holds(video.height, video.width, video.num_frames)
    assert all(spec.extent is None for spec in CATALOGUE)
