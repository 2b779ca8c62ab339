"""The clips of a longer video: what each has of its own, what it takes from the request, and what cannot be."""

from __future__ import annotations

import functools

import pytest

from tests.kits import request_kit
from tests.kits.request_kit import video_problems
from worker.request import CATALOGUE, Limits
from worker.request.catalogue import DEMO_CATALOGUE, I2V_A14B, T2V_A14B
from worker.request.contact import contact
from worker.request.payload import MAX_SEED
from worker.request.plan import Shape
from worker.request.segments import clips

A, B = "https://example.com/a.png", "https://example.com/b.png"
SOURCE = "https://example.com/c.mp4"
video_of = functools.partial(request_kit.video_of, seed=7)
KEYFRAMES = {"continuity": "keyframes", "reference_image_url": A}


def test_what_a_segment_leaves_out_comes_from_the_request() -> None:
    own = {"prompt": " a dog ", "num_frames": 35, "seed": 0, "camera_motion": "static", "loras": [{"source": "b"}]}
    video = video_of(segments=[{}, own, {"seed": -1}], camera_motion="pan_left", loras=[{"source": "a"}], num_frames=49)

    assert [(clip.prompt, clip.num_frames, clip.seed, clip.camera_motion) for clip in clips(video)] == [
        ("a cat", 49, 7, "pan_left"),
        ("a dog", 33, 0, "static"),
        ("a cat", 49, 9, "pan_left"),
    ]
    assert [[lora.source for lora in clip.loras] for clip in clips(video)] == [["a"], ["b"], ["a"]]
    assert (video.num_frames, video.total_frames) == (49, 49 + 32 + 48)
    assert video.warnings == (
        "job_request_params[0].segments[1].num_frames: 35 lowered to 33 (the model makes 4k + 1 frames)",
    )
    second = clips(video)[1]
    assert second.at("loras[0].source") == "job_request_params[0].segments[1].loras[0].source"
    assert second.at("width") == "job_request_params[0].width"


def test_a_rate_that_is_ignored_changes_nothing_and_is_not_said_to() -> None:
    video = video_of(extend_video_url=SOURCE, fps=8)
    assert video.warnings == ("job_request_params[0].fps: ignored, size and rate are those of extend_video_url",)


def test_after_the_last_seed_comes_the_first() -> None:
    assert [clip.seed for clip in clips(video_of(segments=[{}, {}], seed=MAX_SEED))] == [MAX_SEED, 0]


def test_each_further_output_has_other_seeds_in_segments_with_seeds_of_their_own_too() -> None:
    """Or all outputs would be one video, paid for twice."""
    video = {"prompt": "a cat", "seed": 7, "num_outputs": 2, "segments": [{"seed": 3}, {}, {"seed": MAX_SEED}]}
    videos = request_kit.job_of({"job_request_params": [video]}).videos
    assert [[clip.seed for clip in clips(each)] for each in videos] == [[3, 8, MAX_SEED], [4, 9, 0]]


@pytest.mark.parametrize(
    ("fields", "modes"),
    [
        ({}, "text_to_video image_to_video"),
        ({"reference_image_url": A}, "image_to_video image_to_video"),
        ({"extend_video_url": SOURCE}, "image_to_video image_to_video"),
        ({"loop": True}, "text_to_video first_last_frame"),
        ({"segments": [{}, {"last_image_url": B}]}, "text_to_video first_last_frame"),
        ({"segments": [{}, {"transition": "cut"}]}, "text_to_video text_to_video"),
        ({**KEYFRAMES, "segments": [{"last_image_url": B}] * 2}, "first_last_frame first_last_frame"),
        ({**KEYFRAMES, "loop": True, "segments": [{"last_image_url": B}, {}]}, "first_last_frame first_last_frame"),
    ],
)
def test_the_mode_of_each_segment(fields: dict[str, object], modes: str) -> None:
    video = video_of(**{"segments": [{}, {}], **fields})
    assert " ".join(clip.mode for clip in clips(video)) == modes
    assert video.mode == modes.split()[0]


@pytest.mark.parametrize(
    ("fields", "frames", "demo"),
    [
        ({"duration_seconds": 10.06}, [161], False),
        ({"duration_seconds": 12}, [65, 65, 65], False),
        ({"duration_seconds": 62}, [85] * 8 + [81] * 4, False),
        ({"duration_seconds": 12}, [17] * 12, True),
        ({"duration_seconds": 12, "overlap_frames": 9}, [73, 69, 69], False),
        ({"duration_seconds": 12, "continuity": "svi"}, [69, 69, 65], False),
        ({"extend_video_url": SOURCE}, [81], False),
    ],
)
def test_a_long_duration_is_divided_evenly(fields: dict[str, object], frames: list[int], demo: bool) -> None:
    video = video_of(catalogue=DEMO_CATALOGUE if demo else CATALOGUE, **fields)
    assert [clip.num_frames for clip in clips(video)] == frames


def test_one_clip_loops_from_its_picture_to_itself() -> None:
    video = video_of(loop=True, reference_image_url=A)
    assert (video.mode, video.last_image_url, video.chain) == ("first_last_frame", A, None)


@pytest.mark.parametrize(
    ("fields", "path", "says"),
    [
        ({"segments": [{}]}, "segments", "at least 2"),
        ({"segments": [{}] * 13}, "segments", "at most 12"),
        ({"segments": [{}, {"num_frames": 4}]}, "segments[1].num_frames", "must be 5 to 161, not 4"),
        ({"segments": [{}, {"duration_seconds": 11}]}, "segments[1].duration_seconds", "one clip has 5 to 161"),
        ({"segments": [{}, {"num_frames": 9, "duration_seconds": 1}]}, "segments[1].duration_seconds", "beside"),
        ({"segments": [{}, {"loras": [{"source": "a", "scale": 101}]}]}, "segments[1].loras[0].scale", "-100 to 100"),
        ({"segments": [{}, {"num_frame": 9}]}, "segments[1].num_frame", "did you mean num_frames?"),
        ({"segments": [{}, {"seed": -2}]}, "segments[1].seed", "not -2"),
        ({"segments": [{}, {"width": 480}]}, "segments[1].width", "send it in the request around it"),
        ({"segments": [{}, {"reference_image_url": A}]}, "segments[1].reference_image_url", "the request around it"),
        ({"segments": [{}, {"num_infrence_steps": 4}]}, "segments[1].num_infrence_steps", "num_inference_steps?"),
        ({"segments": [{}, {}], "last_image_url": B, "reference_image_url": A}, "last_image_url", "in a segment"),
        ({"segments": [{"last_image_url": B}, {}]}, "segments[0].last_image_url", "needs reference_image_url"),
        ({"segments": [{}, {"last_image_url": B}], "loop": True}, "segments[1].last_image_url", "beside loop"),
        ({"segments": [{}, {"transition": "cut"}], "loop": True}, "segments[1].transition", "send continue"),
        ({**KEYFRAMES, "segments": [{"last_image_url": B}, {}]}, "segments[1].last_image_url", "is missing"),
        ({**KEYFRAMES, "segments": [{"last_image_url": B}] * 2, "overlap_frames": 5}, "overlap_frames", "must be 1"),
        ({"continuity": "keyframes", "segments": [{"last_image_url": B}] * 2}, "reference_image_url", "is missing"),
        ({"segments": [{}, {"num_frames": 9}], "overlap_frames": 9}, "segments[1].num_frames", "more than the 9"),
        ({"segments": [{}, {}], "overlap_frames": 4}, "overlap_frames", "1, 5 or 9"),
        ({"segments": [{}, {}], "reference_video_url": SOURCE}, "segments", "makes one clip"),
        ({"extend_video_url": SOURCE, "reference_image_url": A}, "reference_image_url", "leave it out"),
        ({"extend_video_url": SOURCE, "duration_seconds": 3}, "duration_seconds", "send num_frames"),
        ({"extend_video_url": SOURCE, "last_image_url": B}, "last_image_url", "send it in a segment"),
        ({**KEYFRAMES, "duration_seconds": 20, "last_image_url": B}, "continuity", "needs segments"),
        ({"continuity": "keyframes", "extend_video_url": SOURCE}, "continuity", "needs segments"),
        ({"loop": True}, "loop", "needs segments"),
        ({"segments": [{}, {}], "continuity": "svi", "loop": True}, "loop", "beside continuity svi"),
        ({"segments": [{}, {}], "continuity": "svi", "overlap_frames": 9}, "overlap_frames", "must be 5"),
        ({"segments": [{}, {"num_frames": 5}], "continuity": "svi"}, "segments[1].num_frames", "more than the 5"),
        (
            {"segments": [{}, {"last_image_url": B}], "continuity": "svi"},
            "segments[1].last_image_url",
            "beside continuity svi",
        ),
        (
            {"duration_seconds": 12, "continuity": "svi", "reference_image_url": A, "last_image_url": B},
            "last_image_url",
            "beside continuity svi",
        ),
    ],
)
def test_what_cannot_be_is_refused_at_its_place(fields: dict[str, object], path: str, says: str) -> None:
    assert says in video_problems(**fields)[path]


def test_a_field_of_the_request_is_not_given_to_a_segment_by_null() -> None:
    nulls = dict.fromkeys(["width", "fps", "reference_image_url", "image_url"])
    assert video_of(segments=[{}, nulls]).chain == video_of(segments=[{}, {}]).chain


@pytest.mark.parametrize("sent", [{}, {"overlap_frames": 1}, {"overlap_frames": 5}])
def test_by_svi_five_frames_are_shown_already(sent: dict[str, object]) -> None:
    video = video_of(segments=[{}, {"num_frames": 9}, {"transition": "cut"}], continuity="svi", **sent)
    assert video.chain is not None
    assert (video.chain.overlap_frames, video.total_frames) == (5, 81 + 4 + 81)


@pytest.mark.parametrize(("continuity", "count"), [("svi", 1), ("last_frame", 0)])
def test_by_svi_each_segment_needs_a_seed_of_its_own(continuity: str, count: int) -> None:
    assert video_of(segments=[{"seed": 3}, {"seed": 4}, {}], continuity=continuity).warnings == ()
    warnings = video_of(segments=[{"seed": 3}, {"seed": 3}], continuity=continuity).warnings
    assert [line.split(": ")[0] for line in warnings] == ["job_request_params[0].segments"] * count


def test_the_memory_plan_counts_the_loras_of_svi() -> None:
    """Of rank 128, where the plan counts in LoRAs of rank 64; a text-to-video opening goes without them."""
    own = {"segments": [{"loras": [{"source": "a"}]}, {}], "continuity": "svi", "width": 832, "height": 480}
    first, second = (Shape.of(clip, T2V_A14B) for clip in clips(video_of(**own)))
    assert (first.loras, second.loras) == (1, 2)
    from_picture = [Shape.of(clip, I2V_A14B).loras for clip in clips(video_of(**own, reference_image_url=A))]
    assert from_picture == [3, 2]


def test_all_segments_together_have_a_limit() -> None:
    limits, segments = Limits(max_total_frames=17), [{}, {}]
    assert video_of(limits, segments=segments, num_frames=9).total_frames == 17
    message = video_problems(limits, segments=segments, num_frames=13)["segments"]
    assert message == "makes 25 frames; at most 17 are made (MAX_TOTAL_FRAMES)"


def test_what_is_only_for_several_segments_is_a_warning_in_one() -> None:
    video = video_of(overlap_frames=5, continuity="keyframes")
    assert [line.split(": ")[1] for line in video.warnings] == ["ignored, it is for a video of several segments"] * 2


def test_the_prompts_of_segments_are_private_too() -> None:
    payload = {"job_request_params": [{"prompt": "a", "segments": [{"prompt": "a secret "}, 3]}]}
    assert "a secret" in contact(payload, default_job_id="j").private_texts
