"""Pairs of LoRAs, and experts from the names of files."""

from __future__ import annotations

import pytest

from worker.base.errors import InvalidRequest
from worker.request import Lora, VideoRequest
from worker.request.lora_experts import expert_of
from worker.request.parse import parse


def video_of(*loras: dict[str, object], **fields: object) -> VideoRequest:
    return parse({"prompt": "a", "loras": list(loras), **fields}, default_job_id="j").videos[0]


@pytest.mark.parametrize(
    ("source", "expert"),
    [
        ("style_high_noise.safetensors", "high"),
        ("style-low-noise.safetensors", "low"),
        ("StyleHighNoise.safetensors", "high"),
        ("lownoise_style.safetensors", "low"),
        ("OWNER/repo/low_noise_model.safetensors", "low"),
        ("https://example.com/a/wan2.2_i2v_A14b_high_noise_lora_rank64_1022.safetensors?sig=low_noise", "high"),
        ("https://example.com/style%20high%20noise.safetensors", "high"),
        ("style_HIGH.safetensors", "high"),
        ("style-low-v1.2.safetensors", "low"),
        ("style_high_e20.safetensors", "high"),
        ("style_high_lora.safetensors", "high"),
        ("style_HN.safetensors", "high"),
        ("LN_style.safetensors", "low"),
        ("style.safetensors", None),
        ("high_quality.safetensors", None),
        ("low_poly_v2.safetensors", None),
        ("highlands.safetensors", None),
        ("slow.safetensors", None),
        ("high_noise_and_low_noise.safetensors", None),
        ("high_noise/style.safetensors", None),
    ],
)
def test_the_expert_that_a_name_says(source: str, expert: str | None) -> None:
    assert expert_of(source) == expert
    video = video_of({"source": source})
    assert video.loras == (Lora(source, 1.0, expert or "both", "loras[0].source"),)
    assert video.warnings == (
        (f"loras[0].expert: {expert}, from the file's name; send expert to have it otherwise",) if expert else ()
    )


def test_what_is_sent_counts_before_the_name() -> None:
    video = video_of({"source": "a_high_noise.safetensors", "expert": "low"}, {"source": "b_LN.st", "expert": "both"})
    assert [lora.expert for lora in video.loras] == ["low", "both"]
    assert video.warnings == ()


def test_a_model_of_one_expert_has_its_loras_on_that() -> None:
    video = video_of({"source": "a_high_noise.safetensors"}, model="5b")
    assert (video.loras[0].expert, video.warnings) == ("both", ())


def test_a_pair_is_two_loras_of_one_scale() -> None:
    video = video_of({"source": "a"}, {"high": "b", "low": "c", "scale": 0.5})
    assert video.loras == (
        Lora("a", 1.0, "both", "loras[0].source"),
        Lora("b", 0.5, "high", "loras[1].high"),
        Lora("c", 0.5, "low", "loras[1].low"),
    )


def test_each_file_of_a_pair_counts() -> None:
    pair = {"high": "b", "low": "c"}
    assert len(video_of(*[pair] * 4).loras) == 8
    with pytest.raises(InvalidRequest) as caught:
        video_of(*[pair] * 4, {"source": "a"})
    assert str(caught.value) == "loras: are 9 files, two for each pair; send at most 8"


@pytest.mark.parametrize(
    ("lora", "refused"),
    [
        ({}, "loras[0].source: is missing: send it, or both high and low"),
        ({"high": "a"}, "loras[0].source: is missing: send it, or both high and low"),
        ({"low": "a", "expert": "low"}, "loras[0].source: is missing: send it, or both high and low"),
        ({"source": "a", "low": "b"}, "loras[0].source: cannot stand beside high and low"),
        ({"source": "a", "high": "b", "low": "c"}, "loras[0].source: cannot stand beside high and low"),
        ({"high": "a", "low": "b", "expert": "both"}, "loras[0].expert: cannot stand beside high and low"),
        ({"high": 5, "low": "b"}, "loras[0].high: must be a string, got an integer"),
    ],
)
def test_what_is_neither_one_nor_a_pair_is_refused(lora: dict[str, object], refused: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        video_of(lora)
    assert str(caught.value) == refused
