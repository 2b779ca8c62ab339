"""What `parse_training` reads, against section 10 of the public contract: defaults, experts, sizes and seeds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from worker.base.errors import Unsupported
from worker.request import CATALOGUE, Limits, schema
from worker.request.catalogue import (
    DEMO_CATALOGUE,
    DEMO_EXTENT,
    I2V_A14B,
    T2V_A14B,
    TI2V_5B,
    ModelSpec,
    with_distilled_fused,
)
from worker.request.contact import contact
from worker.request.parse import DEFAULT_LIMITS
from worker.request.payload import MAX_SEED
from worker.request.training import ExpertTraining, TrainingRequest, is_training, parse_training

ZIP = "https://example.com/style.zip"

VALIDATOR = Draft202012Validator(schema.input_schema())


def read(
    limits: Limits = DEFAULT_LIMITS, catalogue: tuple[ModelSpec, ...] = CATALOGUE, **fields: Any
) -> TrainingRequest:
    payload = {"train": {"training_data_url": ZIP, **fields}}
    assert is_training(payload)
    return parse_training(payload, default_job_id="rp-1", limits=limits, catalogue=catalogue).train


def test_defaults_are_those_of_the_contract() -> None:
    payload = {"train": {"training_data_url": ZIP}}
    job = parse_training(payload, default_job_id="rp-1", new_seed=lambda: 7)
    assert job.job_id == "rp-1"
    assert job.train == TrainingRequest(
        training_data_url=ZIP,
        model=T2V_A14B,
        experts=(ExpertTraining("high", 1_000, 1e-4), ExpertTraining("low", 1_000, 1e-4)),
        rank=16,
        alpha=16.0,
        trigger_phrase="",
        caption_dropout=0.1,
        width=832,
        height=480,
        num_frames=81,
        auto_scale_input=True,
        validation_split=0.1,
        sample_prompts=(),
        checkpoint_every=250,
        seed=7,
        dry_run=False,
        warnings=(),
    )


def test_everything_that_is_sent_counts() -> None:
    payload = {
        "job_id": "style-1",
        "webhook_url": "https://example.com/hook",
        "webhook_events": ["completed"],
        "train": {
            "training_data_url": ZIP,
            "model": "a14b-i2v",
            "experts": "low",
            "number_of_steps": 200.0,
            "learning_rate": 5e-5,
            "rank": 32,
            "alpha": 8,
            "trigger_phrase": " zxq ",
            "caption_dropout": 0,
            "resolution": "720p",
            "num_frames": 33,
            "auto_scale_input": False,
            "validation_split": 0,
            "sample_prompts": ["a cat", " zxq on a hill"],
            "checkpoint_every": 20,
            "seed": 0,
            "dry_run": True,
        },
    }
    VALIDATOR.validate(payload)
    job = parse_training(payload, default_job_id="rp-1")
    assert job.job_id == "style-1"
    assert job.train == TrainingRequest(
        training_data_url=ZIP,
        model=I2V_A14B,
        experts=(ExpertTraining("low", 200, 5e-5),),
        rank=32,
        alpha=8.0,
        trigger_phrase="zxq",
        caption_dropout=0.0,
        width=1280,
        height=720,
        num_frames=33,
        auto_scale_input=False,
        validation_split=0.0,
        sample_prompts=("a cat", "zxq on a hill"),
        checkpoint_every=20,
        seed=0,
        dry_run=True,
        warnings=(),
    )


def test_null_is_not_given() -> None:
    nulls = dict.fromkeys(["model", "experts", "number_of_steps", "learning_rate", "num_frames", "seed", "resolution"])
    assert replace(read(**nulls), seed=0) == replace(read(), seed=0)
    VALIDATOR.validate({"train": {"training_data_url": ZIP, **nulls}})
    assert not is_training({"train": None, "prompt": "a cat"})


def test_steps_and_rates_of_each_expert() -> None:
    fields = {"number_of_steps": {"high": 300, "low": 900}, "learning_rate": {"high": 3e-5}}
    assert read(**fields).experts == (ExpertTraining("high", 300, 3e-5), ExpertTraining("low", 900, 1e-4))
    VALIDATOR.validate({"train": {"training_data_url": ZIP, **fields}})


def test_a_value_for_an_expert_that_is_not_trained_has_a_warning() -> None:
    request = read(experts="low", number_of_steps={"high": 300, "low": 900})
    assert request.experts == (ExpertTraining("low", 900, 1e-4),)
    assert request.warnings == ("train.number_of_steps.high: ignored, experts is low",)


def test_the_small_model_has_one_expert() -> None:
    request = read(model="5b", number_of_steps=50, learning_rate=2e-4)
    assert request.model == TI2V_5B
    assert request.experts == (ExpertTraining(None, 50, 2e-4),)
    assert (request.width, request.height, request.num_frames) == (832, 480, 81)


def test_the_small_models_sizes_are_multiples_of_its_own_stride() -> None:
    assert (read(model="5b", resolution="720p").width, read(model="5b", resolution="720p").height) == (1280, 704)


def test_num_frames_goes_down_to_the_models_multiple_with_a_warning() -> None:
    request = read(num_frames=20)
    assert request.num_frames == 17
    assert request.warnings == ("train.num_frames: 20 lowered to 17 (the model has 4k + 1 frames)",)
    assert read(num_frames=1).num_frames == 1


def test_a_limit_below_a_default_lowers_it_without_a_word() -> None:
    request = read(limits=Limits(max_frames=40, max_pixels=320 * 256))
    assert request.num_frames == 37
    assert request.width * request.height <= 320 * 256
    assert request.warnings == ()


def test_the_demo_model_trains_at_the_size_that_it_was_made_for() -> None:
    request = read(catalogue=DEMO_CATALOGUE)
    assert (request.width, request.height, request.num_frames) == (256, 256, 17)
    assert request.model.extent == DEMO_EXTENT
    with_both = (replace(request.model, variant="any", extent=None), *DEMO_CATALOGUE)
    assert read(catalogue=with_both).model == request.model


def test_a_model_that_is_not_served_is_unsupported() -> None:
    for catalogue in ((I2V_A14B,), (I2V_A14B, with_distilled_fused(T2V_A14B))):
        with pytest.raises(Unsupported) as caught:
            read(catalogue=catalogue)
        assert caught.value.path == "train.model"


def test_fields_of_the_senders_own_are_warned_of() -> None:
    assert read(user_id=5).warnings == ("train.user_id: unknown field, ignored",)


def test_seed_is_drawn_where_it_is_not_given() -> None:
    seeds = {read(seed=-1).seed, read().seed}
    assert len(seeds) == 2
    assert all(0 <= seed <= MAX_SEED for seed in seeds)


def test_contact_reads_a_training_leniently() -> None:
    train = {"trigger_phrase": " zxq person ", "sample_prompts": ["a cat on a hill", 5], "steps": 3}
    known = contact({"job_id": "s", "num_outputs": 4, "train": train}, default_job_id="rp")
    assert known.video_count == 1
    assert known.private_texts == ("zxq person", "a cat on a hill")
    assert contact({"train": {"sample_prompts": 5}}, default_job_id="rp").private_texts == ()
    assert contact({"train": "x"}, default_job_id="rp").video_count == 1
