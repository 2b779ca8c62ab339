"""The `train` of a payload becomes a `TrainingJob`: every value settled, all problems reported at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeGuard, TypeVar, get_args

from worker.base.errors import Unsupported
from worker.request import foreign
from worker.request.catalogue import CATALOGUE, DEMO_VERSION, Defaults, ModelSpec
from worker.request.complaints import read
from worker.request.names import unknown_fields
from worker.request.parse import DEFAULT_LIMITS, UrlCheck, draw_seed, vet
from worker.request.payload import JobInput, Limits, VideoInput
from worker.request.problems import Problems
from worker.request.sizing import size_of
from worker.request.training_payload import (
    RatesOfExperts,
    StepsOfExperts,
    TrainingInput,
    TrainingModel,
    TrainInput,
)

Expert = Literal["high", "low"]
OfExpertsT = TypeVar("OfExpertsT", StepsOfExperts, RatesOfExperts)

TRAIN = "train"
_BASES: Mapping[TrainingModel, str] = {"a14b-t2v": "t2v", "a14b-i2v": "i2v", "5b": "5b"}
_JOB_NAMES = frozenset({*TrainingInput.model_fields, "job_request_params", "prompt"})
_TRAIN_NAMES = frozenset(TrainInput.model_fields)
_EXPERTS: tuple[Expert, ...] = get_args(Expert)
_STAND_IN = "https://-"


@dataclass(frozen=True, slots=True)
class ExpertTraining:
    """How one expert is trained: optimizer steps, and the peak learning rate. `expert` is None where there is one."""

    expert: Expert | None
    steps: int
    learning_rate: float


@dataclass(frozen=True, slots=True)
class TrainingRequest:
    """One training with every value settled.

    `experts` are in the order of training, high before low. `width` and `height` are pixels, multiples of the model's
    stride; `num_frames`, at the model's rate, is `frame_stride` * k + 1.
    """

    training_data_url: str
    model: ModelSpec
    experts: tuple[ExpertTraining, ...]
    rank: int
    alpha: float
    trigger_phrase: str
    caption_dropout: float
    width: int
    height: int
    num_frames: int
    auto_scale_input: bool
    validation_split: float
    sample_prompts: tuple[str, ...]
    checkpoint_every: int
    seed: int
    dry_run: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """A training that can start."""

    job_id: str
    train: TrainingRequest


def is_training(payload: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether a payload asks for a training, be it a valid one or not. Never raises."""
    return isinstance(payload, Mapping) and payload.get(TRAIN) is not None


def parse_training(
    payload: Mapping[str, Any],
    *,
    default_job_id: str,
    limits: Limits = DEFAULT_LIMITS,
    catalogue: Sequence[ModelSpec] = CATALOGUE,
    check_url: UrlCheck | None = None,
    new_seed: Callable[[], int] = draw_seed,
) -> TrainingJob:
    """Read the `input` of a RunPod event for which `is_training` is true.

    The other arguments and the errors are those of `parse.parse`; Unsupported where `catalogue` has not the model.
    """
    problems = Problems()
    job = read(JobInput, payload, limits, problems)
    if job.webhook_url is not None:
        vet("webhook_url", job.webhook_url, check_url, problems)
    for name in TrainInput.model_fields:
        if payload.get(name) is not None:
            problems.refuse(name, "is not a field of the job; send it in train")
    unknown_fields(payload, _JOB_NAMES, foreign.OF_JOB, problems)
    for name in ("job_request_params", "prompt"):
        if payload.get(name) is not None:
            problems.refuse(TRAIN, f"cannot stand beside {name}; send two jobs")
    sent = payload[TRAIN]
    if not isinstance(sent, Mapping):
        problems.refuse(TRAIN, "must be an object with training_data_url")
        raise problems.found.error()
    own = problems.at(TRAIN)
    unknown_fields(sent, _TRAIN_NAMES, foreign.OF_TRAINING, own)
    request = _settled(sent, limits, catalogue, check_url, new_seed, own)
    if problems.found.problems:
        raise problems.found.error()
    if request.model not in catalogue:
        name = request.model.key
        raise Unsupported(f"model {name} cannot be trained on this worker, which does not serve it", path="train.model")
    return TrainingJob(job.job_id if job.job_id is not None else default_job_id, request)


def _settled(
    sent: Mapping[str, Any],
    limits: Limits,
    catalogue: Sequence[ModelSpec],
    check_url: UrlCheck | None,
    new_seed: Callable[[], int],
    problems: Problems,
) -> TrainingRequest:
    by_expert = ("number_of_steps", "learning_rate")
    plain = {name: value for name, value in sent.items() if not (name in by_expert and isinstance(value, Mapping))}
    train = read(TrainInput, plain, limits, problems, training_data_url=_STAND_IN)
    if problems.none_in("training_data_url"):
        vet("training_data_url", train.training_data_url, check_url, problems)
    spec = _model(train.model, catalogue)
    width, height, num_frames = _size(train, spec, limits, problems)
    return TrainingRequest(
        training_data_url=train.training_data_url,
        model=spec,
        experts=_experts(train, spec, sent, limits, problems),
        rank=train.rank,
        alpha=float(train.rank if train.alpha is None else train.alpha),
        trigger_phrase=train.trigger_phrase,
        caption_dropout=float(train.caption_dropout),
        width=width,
        height=height,
        num_frames=num_frames,
        auto_scale_input=train.auto_scale_input,
        validation_split=float(train.validation_split),
        sample_prompts=tuple(train.sample_prompts),
        checkpoint_every=train.checkpoint_every,
        seed=new_seed() if train.seed in (None, -1) else train.seed,
        dry_run=train.dry_run,
        warnings=tuple(dict.fromkeys(problems.warnings)),
    )


def _model(name: TrainingModel, catalogue: Sequence[ModelSpec]) -> ModelSpec:
    """The model of that name: of `catalogue` where it is in it, and of the demo's the one with trained weights."""
    found = [spec for spec in (*catalogue, *CATALOGUE) if spec.base == _BASES[name] and not spec.fused]
    return max(found, key=lambda spec: (spec in catalogue, spec.extent is not None))


def _size(train: TrainInput, spec: ModelSpec, limits: Limits, problems: Problems) -> tuple[int, int, int]:
    """Width, height and frames of a clip."""
    defaults = spec.defaults if spec.version == DEMO_VERSION else Defaults()
    video = VideoInput(prompt="-", resolution=train.resolution)
    size = size_of(video, replace(spec, defaults=defaults), limits, problems)
    assert size.width is not None
    assert size.height is not None
    given = min(defaults.num_frames, limits.max_frames) if train.num_frames is None else train.num_frames
    frames = (given - 1) // spec.frame_stride * spec.frame_stride + 1
    if train.num_frames is not None:
        problems.lowered("num_frames", given, frames, f"the model has {spec.frame_stride}k + 1 frames")
    return size.width, size.height, frames


def _experts(
    train: TrainInput, spec: ModelSpec, sent: Mapping[str, Any], limits: Limits, problems: Problems
) -> tuple[ExpertTraining, ...]:
    """The experts to train, in their order; refuses what asks for two of a model that has one."""
    steps = _of_experts("number_of_steps", train.number_of_steps, StepsOfExperts, sent, limits, problems)
    rates = _of_experts("learning_rate", train.learning_rate, RatesOfExperts, sent, limits, problems)
    trained = _EXPERTS if train.experts == "both" else (train.experts,)
    single = spec.boundary_ratio is None
    if single and train.experts != "both":
        problems.refuse("experts", f"model {train.model} has a single one; leave experts out")
    for field in ("number_of_steps", "learning_rate"):
        of_experts = sent.get(field)
        if not isinstance(of_experts, Mapping):
            continue
        if single:
            problems.refuse(field, f"model {train.model} has a single expert; send a number")
        for expert in _EXPERTS:
            if expert not in trained and of_experts.get(expert) is not None:
                problems.warn(f"{field}.{expert}", f"ignored, experts is {train.experts}")
    if single:
        return (ExpertTraining(None, steps.high, float(rates.high)),)
    return tuple(ExpertTraining(expert, getattr(steps, expert), float(getattr(rates, expert))) for expert in trained)


def _of_experts(
    field: str, plain: Any, model: type[OfExpertsT], sent: Mapping[str, Any], limits: Limits, problems: Problems
) -> OfExpertsT:
    """The value of each expert: from an object with one for each, else `plain` for both."""
    given = sent.get(field)
    if not isinstance(given, Mapping):
        return model.model_construct(high=plain, low=plain)
    own = problems.at(f"{problems.path}.{field}")
    unknown_fields(given, frozenset(model.model_fields), foreign.OF_EXPERTS, own)
    problems.warnings = own.warnings
    return read(model, given, limits, own)
