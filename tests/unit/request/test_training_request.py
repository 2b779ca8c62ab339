"""`parse_training` against section 10 of the public contract, line by line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from worker.base.errors import InputBlocked, InvalidRequest, Unsupported
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
from worker.request.training_payload import TrainInput

ZIP = "https://example.com/style.zip"
VALIDATOR = Draft202012Validator(schema.input_schema())


def read(
    limits: Limits = DEFAULT_LIMITS, catalogue: tuple[ModelSpec, ...] = CATALOGUE, **fields: Any
) -> TrainingRequest:
    payload = {"train": {"training_data_url": ZIP, **fields}}
    assert is_training(payload)
    return parse_training(payload, default_job_id="rp-1", limits=limits, catalogue=catalogue).train


def problems_of(payload: dict[str, Any], **more: Any) -> dict[str | None, str]:
    with pytest.raises(InvalidRequest) as caught:
        parse_training(payload, default_job_id="rp-1", **more)
    return {problem.path: problem.message for problem in caught.value.problems}


def refused(**fields: Any) -> dict[str | None, str]:
    return problems_of({"train": {"training_data_url": ZIP, **fields}})


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
    assert refused(model="5b", experts="high", number_of_steps={"high": 20}).keys() == {
        "train.experts",
        "train.number_of_steps",
    }


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


BOUNDS: list[tuple[str, Any, Any]] = [
    # field, what is still allowed, what is not
    ("number_of_steps", 10, 9),
    ("number_of_steps", 10_000, 10_001),
    ("number_of_steps", {"low": 10}, {"low": 9}),
    ("number_of_steps", {"high": 10_000}, {"high": 10_001}),
    ("learning_rate", 1e-9, 0),
    ("learning_rate", 0.1, 0.11),
    ("learning_rate", {"high": 0.1}, {"high": 0.2}),
    ("learning_rate", {"low": 1e-9}, {"low": -1e-4}),
    ("rank", 1, 0),
    ("rank", 128, 129),
    ("alpha", 1, 0.5),
    ("alpha", 128, 128.5),
    ("trigger_phrase", "z" * 200, "z" * 201),
    ("caption_dropout", 0, -0.01),
    ("caption_dropout", 1, 1.01),
    ("num_frames", 1, 0),
    ("num_frames", 161, 162),
    ("validation_split", 0, -0.01),
    ("validation_split", 0.5, 0.51),
    ("sample_prompts", ["a"] * 4, ["a"] * 5),
    ("sample_prompts", ["a" * 4000], ["a" * 4001]),
    ("sample_prompts", ["a"], [" "]),
    ("checkpoint_every", 1, 0),
    ("checkpoint_every", 10_000, 10_001),
    ("seed", -1, -2),
    ("seed", MAX_SEED, MAX_SEED + 1),
    ("model", "5b", "a14b"),
    ("experts", "high", "all"),
    ("resolution", "580p", "1080p"),
    ("training_data_url", ZIP, "style.zip"),
]


@pytest.mark.parametrize(("field", "allowed", "beyond"), BOUNDS)
def test_both_sides_of_each_bound(field: str, allowed: Any, beyond: Any) -> None:
    read(**{field: allowed})
    (path,) = refused(**{field: beyond})
    assert path is not None
    assert path.startswith(f"train.{field}")


@pytest.mark.parametrize(("field", "allowed", "beyond"), BOUNDS)
def test_the_schema_has_the_same_bounds(field: str, allowed: Any, beyond: Any) -> None:
    VALIDATOR.validate({"train": {"training_data_url": ZIP, field: allowed}})
    in_words = field == "training_data_url" or beyond == [" "] or (field == "sample_prompts" and len(beyond) == 1)
    assert VALIDATOR.is_valid({"train": {"training_data_url": ZIP, field: beyond}}) is in_words


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("number_of_steps", "100"),
        ("number_of_steps", True),
        ("number_of_steps", {"high": "100"}),
        ("number_of_steps", [100, 100]),
        ("learning_rate", "1e-4"),
        ("learning_rate", float("nan")),
        ("rank", 8.5),
        ("auto_scale_input", 1),
        ("sample_prompts", "a cat"),
        ("trigger_phrase", "\ud800"),
        ("training_data_url", 5),
    ],
)
def test_types_are_strict(field: str, value: Any) -> None:
    (path,) = refused(**{field: value})
    assert path is not None
    assert path.startswith(f"train.{field}")


def test_every_problem_is_reported_at_once() -> None:
    payload = {
        "job_id": "a/b",
        "webhook_url": "nowhere",
        "job_request_params": [{"prompt": "a cat"}],
        "train": {"rank": 0, "number_of_steps": {"high": 5, "low": 20_000}, "trigger_word": "zxq", "widht": 5},
    }
    found = problems_of(payload)
    assert found == {
        "job_id": "must be 1 to 128 of A-Z a-z 0-9 . _ - and neither '.' nor hold '..'",
        "webhook_url": "must be a URL such as https://example.com/name",
        "train": "cannot stand beside job_request_params; send two jobs",
        "train.training_data_url": "is missing",
        "train.rank": "must be 1 to 128, not 0",
        "train.number_of_steps.high": "must be 10 to 10000, not 5",
        "train.number_of_steps.low": "must be 10 to 10000, not 20000",
        "train.trigger_word": "is not a field here; did you mean trigger_phrase?",
    }


@pytest.mark.parametrize("beside", [{"prompt": "a cat"}, {"job_request_params": []}])
def test_a_training_is_a_job_of_its_own(beside: dict[str, Any]) -> None:
    payload = {"train": {"training_data_url": ZIP}, **beside}
    assert problems_of(payload) == {"train": f"cannot stand beside {next(iter(beside))}; send two jobs"}
    assert not VALIDATOR.is_valid(payload)


@pytest.mark.parametrize("train", [ZIP, [], 5, True])
def test_what_is_no_object_is_refused(train: object) -> None:
    assert problems_of({"train": train}) == {"train": "must be an object with training_data_url"}
    assert not VALIDATOR.is_valid({"train": train})


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("images_data_url", "training_data_url"),
        ("dataset_url", "training_data_url"),
        ("steps", "number_of_steps"),
        ("lr", "learning_rate"),
        ("lora_rank", "rank"),
        ("trigger_word", "trigger_phrase"),
        ("save_every", "checkpoint_every"),
        ("optimizer", "nothing of the kind"),
        ("learning_rte", "learning_rate"),
    ],
)
def test_other_trainers_names_and_slips_lead_to_ours(name: str, ours: str) -> None:
    found = refused(**{name: 1})
    assert found.keys() == {f"train.{name}"}
    assert ours in found[f"train.{name}"]


def test_fields_of_the_senders_own_are_warned_of() -> None:
    assert read(user_id=5).warnings == ("train.user_id: unknown field, ignored",)


def test_urls_are_vetted_with_their_paths() -> None:
    def check(url: str, *, path: str) -> None:
        raise InputBlocked("may not be fetched", path=path)

    payload = {"webhook_url": "https://a/b", "train": {"training_data_url": ZIP}}
    with pytest.raises(InputBlocked) as caught:
        parse_training(payload, default_job_id="j", check_url=check)
    assert [problem.path for problem in caught.value.problems] == ["webhook_url", "train.training_data_url"]
    found = problems_of({"train": {"training_data_url": 5}}, check_url=check)
    assert found.keys() == {"train.training_data_url"}


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


JUNK: list[Any] = [
    *(True, 0, -1, 3, 1.5, 10**400, -(10**30), float("inf"), float("nan"), 1e300, 5e-324, "", "x", "\ud800", "\0"),
    *([], [None], ["a", 5], [[]], {}, {"high": None}, {"high": {}}, {"low": 10**400}, {5: 6}, b"x", object()),
]


@pytest.mark.parametrize("field", TrainInput.model_fields)
def test_whatever_a_field_holds_is_a_request_or_a_refusal_that_names_it(field: str) -> None:
    astray: list[str | None] = []
    for value in JUNK:
        payload = {"train": {"training_data_url": ZIP, field: value}}
        assert contact(payload, default_job_id="rp").video_count == 1
        try:
            parse_training(payload, default_job_id="rp")
        except InvalidRequest as refused:
            astray += [each.path for each in refused.problems if not (each.path or "").startswith(f"train.{field}")]
    assert astray == []
