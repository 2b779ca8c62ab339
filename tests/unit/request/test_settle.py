"""Frames, rates, outputs and the demo model's defaults; that every problem is found beside every other."""

from __future__ import annotations

from typing import Any

import pytest

from worker.base.errors import InputBlocked, InvalidRequest, WorkerError
from worker.request import CATALOGUE, Limits, VideoRequest, choose
from worker.request.catalogue import DEMO_CATALOGUE, DEMO_EXTENT
from worker.request.parse import parse
from worker.request.payload import MAX_SEED
from worker.request.settle import MAX_INTERPOLATED_FRAMES

IMAGE = "https://example.com/a.png"


def videos_of(limits: Limits | None = None, **fields: object) -> tuple[VideoRequest, ...]:
    payload = {"prompt": "a cat", **fields}
    return parse(payload, default_job_id="j", limits=limits or Limits(), new_seed=lambda: 7).videos


def problems_of(limits: Limits | None = None, **fields: object) -> dict[str | None, str]:
    with pytest.raises(InvalidRequest) as caught:
        videos_of(limits, **fields)
    return {problem.path: problem.message for problem in caught.value.problems}


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
    assert videos_of(**fields)[0].num_frames == frames


@pytest.mark.parametrize(
    ("seconds", "fields", "most", "holds"),
    [
        (0.18, {}, "10.06", "one clip has 5 to 161 frames, at 16 fps"),
        (
            10.2,
            {"reference_video_url": "https://example.com/a.mp4"},
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
    message = problems_of(duration_seconds=seconds, **fields)["duration_seconds"]
    assert message.startswith(f"must be 0.31 to {most}, not ")
    assert message.endswith(holds)


def test_a_lower_limit_of_frames_bounds_the_seconds_too() -> None:
    assert videos_of(Limits(max_frames=80), duration_seconds=5)[0].num_frames == 77
    assert problems_of(Limits(max_frames=79, max_total_frames=79), duration_seconds=5).keys() == {"duration_seconds"}


def test_seconds_and_frames_exclude_each_other() -> None:
    assert problems_of(duration_seconds=5, num_frames=81) == {
        "duration_seconds": "cannot stand beside num_frames; send one of the two"
    }


# --- rates


@pytest.mark.parametrize(("model", "own", "other"), [("a14b", 16, 24), ("5b", 24, 16)])
def test_another_rate_than_the_models_own_changes_the_speed_of_motion(model: str, own: int, other: int) -> None:
    assert videos_of(model=model, fps=own)[0].warnings == ()
    (line,) = videos_of(model=model, fps=other)[0].warnings
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
        video = videos_of(**fields)[0]
        assert video.output.target_fps == fields["target_fps"]
        assert video.num_frames * fields["target_fps"] // video.fps <= MAX_INTERPOLATED_FRAMES
    else:
        assert problems_of(**fields).keys() == {"target_fps"}


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
    videos = videos_of(num_outputs=3, seed=seed)
    assert [(video.index, video.seed) for video in videos] == list(enumerate(seeds))
    assert {(video.prompt, video.path) for video in videos} == {("a cat", "")}


def test_outputs_count_as_videos_and_keep_the_order() -> None:
    payload = {"job_request_params": [{"prompt": "a", "num_outputs": 2, "seed": 1}, {"prompt": "b", "seed": 9}]}
    videos = parse(payload, default_job_id="j", limits=Limits(max_videos_per_job=3)).videos
    assert [(video.index, video.prompt, video.seed) for video in videos] == [(0, "a", 1), (1, "a", 2), (2, "b", 9)]
    with pytest.raises(InvalidRequest) as caught:
        parse(payload, default_job_id="j", limits=Limits(max_videos_per_job=2))
    assert str(caught.value) == "job_request_params: asks for 3 videos; send at most 2 in one job"
    assert problems_of(Limits(max_videos_per_job=1), num_outputs=2) == {
        "num_outputs": "asks for 2 videos; send at most 1 in one job"
    }


def test_an_address_for_one_video_does_not_take_several() -> None:
    assert videos_of(upload_url=IMAGE)[0].output.upload_url == IMAGE
    assert problems_of(upload_url=IMAGE, num_outputs=2).keys() == {"upload_url"}


# --- all problems at once


def test_what_follows_from_a_wrong_field_is_not_reported_beside_it() -> None:
    wrong = {"fps": 0, "duration_seconds": 30, "target_fps": 10, "output_format": "mov", "output_codec": "vp9"}
    assert problems_of(**wrong).keys() == {"fps", "output_format"}
    assert problems_of(width="wide", height=1920).keys() == {"width"}
    assert problems_of(reference_image_url="no url", last_image_url=IMAGE).keys() == {"reference_image_url"}


@pytest.mark.parametrize(
    ("segments", "refused"),
    [
        (7, "segments"),
        ([{}], "segments"),
        ([{"last_image_url": IMAGE}, {"seed": -2}], "segments[1].seed"),
        ([7, {}], "segments[0]"),
    ],
)
def test_what_needs_segments_is_not_refused_where_they_are_wrong(segments: object, refused: str) -> None:
    beside = {"loop": True, "continuity": "keyframes", "reference_image_url": "no url"}
    assert problems_of(segments=segments, **beside).keys() == {refused, "reference_image_url"}


def test_what_is_wrong_inside_of_a_list_hides_nothing_beside_it() -> None:
    loras = [
        {"source": "http://10.0.0.1/", "scale": 101},
        {"source": "http://10.0.0.2/"},
        {"high": "http://10.0.0.3/", "low": 5},
        {"high": "http://10.0.0.4/", "low": "b", "expert": "low"},
        "c.safetensors",
    ]
    segments = [
        {"seed": -2, "last_image_url": "http://10.0.0.5/"},
        {"num_frames": 9, "duration_seconds": 3},
        {"num_frames": 4, "loras": [{"source": "a", "scale": True}, {}, *loras[1:2]]},
        None,
    ]
    error = refusal({"prompt": "a", "loras": loras, "segments": segments, "last_image_url": "http://10.0.0.6/"})
    assert {problem.path for problem in error.problems} == {
        "loras[0].scale",
        "loras[0].source",
        "loras[1].source",
        "loras[2].high",
        "loras[2].low",
        "loras[3].expert",
        "loras[3].high",
        "loras[4]",
        "segments[0].seed",
        "segments[0].last_image_url",
        "segments[1].duration_seconds",
        "segments[2].num_frames",
        "segments[2].loras[0].scale",
        "segments[2].loras[1].source",
        "segments[2].loras[2].source",
        "segments[3]",
        "last_image_url",
    }


def test_every_kind_of_problem_is_found_beside_every_other() -> None:
    wrong: dict[str, Any] = {
        "prompt": "",
        "width": 1920,
        "height": 1920,
        "num_frames": 400,
        "target_fps": 5,
        "output_codec": "vp9",
        "image": IMAGE,
        "last_image_url": IMAGE,
        "sede": 3,
        "loras": [{"source": "a", "scale": 1e9}],
    }
    assert problems_of(**wrong).keys() == {
        *(
            "prompt",
            "width",
            "num_frames",
            "target_fps",
            "output_codec",
            "image",
            "last_image_url",
            "sede",
            "loras[0].scale",
        )
    }


def blocked(url: str, *, path: str) -> None:
    """A check of URLs that knows one good host."""
    if not url.startswith("https://example.com/"):
        raise InputBlocked("this URL may not be fetched", path=path)


def refusal(payload: dict[str, Any]) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        parse(payload, default_job_id="j", check_url=blocked)
    return caught.value


BAD_URLS: dict[str, Any] = {
    "webhook_url": "http://10.0.0.1/",
    "job_request_params": [
        {
            "prompt": "a",
            "reference_image_url": "http://10.0.0.2/",
            "last_image_url": "http://10.0.0.3/",
            "upload_url": "data:,",
            "loras": [
                {"source": "HTTP://10.0.0.4/a"},
                {"high": "http://10.0.0.5/", "low": "owner/repo/a.safetensors"},
                {"source": "b.safetensors"},
            ],
        },
        {"prompt": "b", "reference_video_url": "data:video/mp4;base64,AAAA"},
    ],
}
BAD_PATHS = [
    "webhook_url",
    "job_request_params[0].reference_image_url",
    "job_request_params[0].last_image_url",
    "job_request_params[0].upload_url",
    "job_request_params[0].loras[0].source",
    "job_request_params[0].loras[1].high",
    "job_request_params[1].reference_video_url",
]


def test_every_url_that_may_not_be_fetched_is_named() -> None:
    error = refusal(BAD_URLS)
    assert error.code == "input_blocked"
    assert [problem.path for problem in error.problems] == BAD_PATHS
    assert error.several()["problems"] == [
        {"path": path, "message": "this URL may not be fetched"} for path in BAD_PATHS
    ]


def test_urls_are_named_beside_what_else_is_wrong_which_gives_the_code() -> None:
    error = refusal({**BAD_URLS, "job_id": "a/b"})
    assert error.code == "invalid_request"
    assert {problem.path for problem in error.problems} == {"job_id", *BAD_PATHS}


def test_good_urls_and_data_uris_of_pictures_pass() -> None:
    fields = {"prompt": "a", "reference_image_url": "DATA:image/png;base64,AAAA", "webhook_url": IMAGE}
    assert parse(fields, default_job_id="j", check_url=blocked).videos[0].mode == "image_to_video"


# --- the demo model


def demo_video(**fields: object) -> VideoRequest:
    return parse({"prompt": "a cat", **fields}, default_job_id="j", catalogue=DEMO_CATALOGUE).videos[0]


@pytest.mark.parametrize(
    "fields", [{}, {"reference_image_url": IMAGE}, {"reference_video_url": IMAGE}, {"resolution": None}]
)
def test_what_is_not_given_is_what_the_demo_model_was_trained_for(fields: dict[str, object]) -> None:
    video = demo_video(**fields)
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
    warnings = demo_video(**fields).warnings
    assert [line.split(":")[0] for line in warnings] == ([] if field is None else [field])
    assert all("moving colour" in line for line in warnings)


def test_what_is_told_is_what_is_chosen() -> None:
    video = demo_video()
    assert choose(DEMO_CATALOGUE, video).extent == DEMO_EXTENT
    assert DEMO_EXTENT.holds(video.height, video.width, video.num_frames)
    assert all(spec.extent is None for spec in CATALOGUE)
