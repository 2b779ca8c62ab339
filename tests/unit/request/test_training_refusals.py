"""What `parse_training` and the schema refuse: bounds, types, other trainers' names, URLs, and anything odd."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from worker.base.errors import InputBlocked, InvalidRequest
from worker.request import schema
from worker.request.contact import contact
from worker.request.payload import MAX_SEED
from worker.request.training import parse_training
from worker.request.training_payload import TrainInput

ZIP = "https://example.com/style.zip"
VALIDATOR = Draft202012Validator(schema.input_schema())


def problems_of(payload: dict[str, Any], **more: Any) -> dict[str | None, str]:
    with pytest.raises(InvalidRequest) as caught:
        parse_training(payload, default_job_id="rp-1", **more)
    return {problem.path: problem.message for problem in caught.value.problems}


def refused(**fields: Any) -> dict[str | None, str]:
    return problems_of({"train": {"training_data_url": ZIP, **fields}})


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
    parse_training({"train": {"training_data_url": ZIP, field: allowed}}, default_job_id="rp-1")
    (path,) = refused(**{field: beyond})
    assert str(path).startswith(f"train.{field}")


@pytest.mark.parametrize(("field", "allowed", "beyond"), BOUNDS)
def test_the_schema_has_the_same_bounds(field: str, allowed: Any, beyond: Any) -> None:
    VALIDATOR.validate({"train": {"training_data_url": ZIP, field: allowed}})
    in_words = field == "training_data_url" or beyond == [" "] or (field == "sample_prompts" and len(beyond) == 1)
    assert VALIDATOR.is_valid({"train": {"training_data_url": ZIP, field: beyond}}) is in_words


def test_the_small_model_has_no_experts_to_choose() -> None:
    found = refused(model="5b", experts="high", number_of_steps={"high": 20})
    assert found.keys() == {"train.experts", "train.number_of_steps"}


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
    assert str(path).startswith(f"train.{field}")


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


def test_urls_are_vetted_with_their_paths() -> None:
    def check(url: str, *, path: str) -> None:
        raise InputBlocked("may not be fetched", path=path)

    payload = {"webhook_url": "https://a/b", "train": {"training_data_url": ZIP}}
    with pytest.raises(InputBlocked) as caught:
        parse_training(payload, default_job_id="j", check_url=check)
    assert [problem.path for problem in caught.value.problems] == ["webhook_url", "train.training_data_url"]
    found = problems_of({"train": {"training_data_url": 5}}, check_url=check)
    assert found.keys() == {"train.training_data_url"}


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


def test_a_field_of_the_training_beside_it_is_refused_and_not_ignored() -> None:
    beside = {"rank": 64, "number_of_steps": 500, "training_data_url": ZIP, "seed": None}
    assert problems_of({"train": {"training_data_url": ZIP}, **beside}) == dict.fromkeys(
        ["training_data_url", "number_of_steps", "rank"], "is not a field of the job; send it in train"
    )


def test_a_text_that_is_too_long_is_refused_in_plain_words() -> None:
    assert refused(trigger_phrase="x" * 201) == {"train.trigger_phrase": "must have at most 200 characters"}


def test_another_name_for_an_expert_is_refused() -> None:
    for field in ("number_of_steps", "learning_rate"):
        (message,) = refused(**{field: {"high_noise": 500}}).values()
        assert message == "is not a field here; did you mean high?"
