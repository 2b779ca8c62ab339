"""What a video request is made of: its mode, prompts, seed, LoRAs and previews."""

from __future__ import annotations

import pytest

from tests.kits.request_kit import IMAGE, LAST, VIDEO, video_of, video_problems
from worker.request.parse import draw_seed, parse
from worker.request.payload import MAX_SEED
from worker.request.values import Previews

# --- modes and conflicts


@pytest.mark.parametrize(
    ("urls", "mode"),
    [
        ({}, "text_to_video"),
        ({"reference_image_url": IMAGE}, "image_to_video"),
        ({"reference_image_url": "data:image/png;base64,AAAA"}, "image_to_video"),
        ({"reference_image_url": IMAGE, "last_image_url": LAST}, "first_last_frame"),
        ({"reference_video_url": VIDEO}, "video_to_video"),
    ],
)
@pytest.mark.parametrize("model", ["a14b", "5b"])
def test_what_is_sent_chooses_the_mode(urls: dict[str, str], mode: str, model: str) -> None:
    video = video_of(model=model, **urls)
    assert video.mode == mode
    assert {name: getattr(video, name) for name in urls} == urls


def test_a_last_image_needs_a_first() -> None:
    assert "needs reference_image_url" in video_problems(last_image_url=LAST)["last_image_url"]


def test_a_video_and_an_image_exclude_each_other() -> None:
    assert set(video_problems(reference_video_url=VIDEO, reference_image_url=IMAGE)) == {"reference_video_url"}
    assert set(video_problems(reference_video_url=VIDEO, last_image_url=LAST)) == {"last_image_url"}


def test_a_video_and_a_last_image_exclude_each_other() -> None:
    assert video_problems(last_image_url=LAST, reference_video_url=VIDEO) == {
        "last_image_url": "cannot stand together with reference_video_url; send one of the two"
    }


def test_strength_without_a_video_is_ignored_with_a_warning() -> None:
    video = video_of(strength=0.5)
    assert video.warnings == ("job_request_params[0].strength: ignored, it is for reference_video_url",)


# --- prompts and seeds


def test_an_empty_negative_prompt_means_none() -> None:
    assert video_of(negative_prompt="").negative_prompt == ""
    assert video_of(negative_prompt="  ").negative_prompt == ""
    assert video_of(negative_prompt=" blurry ").negative_prompt == "blurry"


def test_the_prompt_is_trimmed_and_kept() -> None:
    assert video_of(prompt="\n a cat, 猫 \t").prompt == "a cat, 猫"


@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "camera_motion", "model", "quality_preset"])
def test_a_lone_surrogate_is_refused(field: str) -> None:
    assert video_problems(**{field: "\ud800"}) == {field: "must be a string of valid Unicode"}


def test_seed_0_is_a_seed() -> None:
    def never() -> int:
        raise AssertionError("a seed was drawn")

    job = parse({"prompt": "a cat", "seed": 0}, default_job_id="rp-1", new_seed=never)
    assert job.videos[0].seed == 0


def test_a_seed_is_drawn_for_each_video_that_has_none() -> None:
    drawn = iter([11, 22])
    payload = {"job_request_params": [{"prompt": "a"}, {"prompt": "b", "seed": 5}, {"prompt": "c", "seed": None}]}
    job = parse(payload, default_job_id="rp-1", new_seed=lambda: next(drawn))
    assert [video.seed for video in job.videos] == [11, 5, 22]


def test_drawn_seeds_are_in_range_and_differ() -> None:
    seeds = {draw_seed() for _ in range(1000)}
    assert len(seeds) == 1000
    assert all(0 <= seed <= MAX_SEED for seed in seeds)
    assert max(seeds) > 2**61  # a draw from 32 or 53 bits would never come this far
    assert MAX_SEED == 2**63 - 1


# --- LoRAs


def test_loras_with_their_defaults() -> None:
    video = video_of(
        loras=[
            {"source": "a"},
            {"source": "b", "scale": 2, "expert": "high"},
            {"source": "c", "scale": -0.5, "expert": "low"},
            {"source": "d", "scale": 100},
            {"source": "e", "scale": -100.0},
        ]
    )
    assert [(lora.source, lora.scale, lora.expert) for lora in video.loras] == [
        ("a", 1.0, "both"),
        ("b", 2.0, "high"),
        ("c", -0.5, "low"),
        ("d", 100.0, "both"),
        ("e", -100.0, "both"),
    ]


@pytest.mark.parametrize(
    ("lora", "path"),
    [
        ({}, "loras[1].source"),
        ({"source": ""}, "loras[1].source"),
        ({"source": 5}, "loras[1].source"),
        ({"source": "\ud800"}, "loras[1].source"),
        ({"source": "a", "scale": "1"}, "loras[1].scale"),
        ({"source": "a", "scale": True}, "loras[1].scale"),
        ({"source": "a", "scale": float("nan")}, "loras[1].scale"),
        ({"source": "a", "scale": 10**400}, "loras[1].scale"),
        ({"source": "a", "scale": 1e30}, "loras[1].scale"),
        ({"source": "a", "scale": 100.1}, "loras[1].scale"),
        ({"source": "a", "scale": -100.1}, "loras[1].scale"),
        ({"source": "a", "expert": "middle"}, "loras[1].expert"),
        ({"source": "a", "scle": 1.0}, "loras[1].scle"),
        ("a", "loras[1]"),
        (None, "loras[1]"),
    ],
)
def test_a_bad_lora_is_named_by_its_place(lora: object, path: str) -> None:
    assert set(video_problems(loras=[{"source": "a"}, lora])) == {path}


def test_an_unknown_field_of_a_lora_is_ignored_with_a_warning() -> None:
    assert video_of(loras=[{"source": "a", "trigger": "x"}]).warnings == (
        "job_request_params[0].loras[0].trigger: unknown field, ignored",
    )


# --- previews


@pytest.mark.parametrize(
    ("fields", "preview"),
    [
        ({}, Previews()),
        ({"preview": "animated"}, Previews("animated")),
        ({"preview": "strip", "preview_at": [0.5, 0.1, 0.5]}, Previews("strip", (0.1, 0.5))),
        ({"preview_only": True}, Previews("strip", only=True)),
        ({"preview": "animated", "preview_only": True}, Previews("animated", only=True)),
        (
            {"preview": "strip", "preview_at": [0.01, 0.2, 0.3, 0.4, 0.99]},
            Previews("strip", (0.01, 0.2, 0.3, 0.4, 0.99)),
        ),
    ],
)
def test_previews_that_are_asked_for(fields: dict[str, object], preview: Previews) -> None:
    assert (video_of(**fields).preview, video_of(**fields).warnings) == (preview, ())


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"preview": "gif"}, "preview"),
        ({"preview_at": []}, "preview_at"),
        ({"preview_at": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}, "preview_at"),
        ({"preview_at": [0]}, "preview_at[0]"),
        ({"preview_at": [0.1, 1]}, "preview_at[1]"),
        ({"preview_only": True, "segments": [{"prompt": "a"}, {"prompt": "b"}]}, "preview_only"),
    ],
)
def test_previews_that_cannot_be(fields: dict[str, object], path: str) -> None:
    assert [each.removeprefix("job_request_params[0].") for each in video_problems(**fields) if each] == [path]


def test_what_has_no_effect_beside_previews_is_said() -> None:
    assert "ignored, it is for preview" in video_of(preview_at=[0.5]).warnings[0]
    ignored = video_of(preview_only=True, target_fps=32, response_format="base64").warnings
    assert len(ignored) == 2
    assert all("preview_only makes no video" in line for line in ignored)
