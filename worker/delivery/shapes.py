"""The shapes of what a caller receives: the result and the failure of a video, the answers of jobs, each webhook.

Source: sections 2, 3 and 10 of the public contract. `builder.schemas` exports them to docs/schemas.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from worker.delivery.webhooks.progress_sender import Status
from worker.request import Mode

Code = Literal[
    "invalid_request",
    "unsupported",
    "input_blocked",
    "input_failed",
    "input_invalid",
    "cancelled",
    "internal",
    "encode_failed",
    "upload_failed",
    "model_unavailable",
    "timeout",
    "out_of_memory",
]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Error(TypedDict):
    """What went wrong. `path` is the field it is about, null for none; `retryable`: the same payload may succeed."""

    code: Code
    message: str
    path: str | None
    retryable: bool


class FoundProblem(TypedDict):
    path: str | None
    message: str


class Provenance(TypedDict):
    """How the file is marked as made by AI; null where AI_MARK is off. `digital_source_type` is a term of IPTC."""

    digital_source_type: Literal["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"]
    c2pa: Literal["signed", "off"]
    timestamped: bool
    instance_id: str


class SegmentResult(TypedDict):
    """One clip of a longer video; its frames are those of the file.

    `seam` is the step from the frame before over the median step inside, by mean absolute difference; null where there
    is nothing before. `color_drift` is the distance (CIE76) of its mean colour to that of the first segment.
    """

    index: int
    first_frame: int
    num_frames: int
    seed: int
    prompt: str
    seam: float | None
    color_drift: float


class VideoResult(TypedDict):
    """One video that was delivered. `timings` are seconds by stage, `parameters` every effective value."""

    index: int
    status: Literal["completed"]
    job_id: str
    video_url: str | None
    thumbnail_url: str | None
    frames_url: NotRequired[str | None]
    preview_url: NotRequired[str | None]
    video_base64: NotRequired[str]
    duration_seconds: float
    num_frames: int
    resolution: Annotated[str, Field(pattern="^[0-9]+x[0-9]+$")]
    fps: int
    seed: int
    prompt: str
    negative_prompt: str
    model_version: str
    mode: Mode
    parameters: dict[str, Any]
    warnings: list[str]
    size_bytes: int
    sha256: Sha256
    timings: dict[str, float]
    gpu: str
    cost_usd: float | None
    provenance: Provenance | None
    cold_start: NotRequired[dict[str, float]]
    segments: NotRequired[list[SegmentResult]]


class VideoFailure(TypedDict):
    """One video that was not made. `index` is null where no video of the job could start."""

    index: int | None
    status: Literal["failed"]
    job_id: str
    error: Error
    problems: NotRequired[list[FoundProblem]]


class JobAnswer(TypedDict):
    """What the handler returns. `error` is an `Error` as a JSON string, there where no video was delivered."""

    job_id: str
    status: Literal["completed", "partial", "failed"]
    videos: list[VideoResult | VideoFailure]
    timings: dict[str, float]
    error: NotRequired[str]
    problems: NotRequired[list[FoundProblem]]


class TrainedLora(TypedDict):
    """One of a request's `loras`: the files of both experts, or `source`, the file of one of them."""

    high: NotRequired[str]
    low: NotRequired[str]
    source: NotRequired[str]
    expert: NotRequired[Literal["high", "low", "both"]]
    scale: float


class MeasuredLoss(TypedDict):
    step: int
    loss: float


class TrainedExpert(TypedDict):
    """What one expert learned: the loss on what was held out, null where nothing was, and the step of the least."""

    loss_before: float | None
    loss_after: float | None
    best_step: int
    steps: int
    losses: list[MeasuredLoss]
    sha256: Sha256
    size_bytes: int


class TrainingSample(TypedDict):
    """One prompt, drawn by the model as it was and with the LoRAs, from the same seed."""

    prompt: str
    seed: int
    before_url: str | None
    after_url: str | None


class UsedFile(TypedDict):
    """One file of the data set. `cropped` is the share of its picture, 0 to 1, outside the frame."""

    name: str
    num_frames: int
    cropped: float
    held_out: bool


class RefusedFile(TypedDict):
    name: str
    reason: str


class DatasetReport(TypedDict):
    """How many clips are trained on and held out, how many files are refused, and the first 200 of both."""

    clips: int
    held_out: int
    refused: int
    used_files: list[UsedFile]
    refused_files: list[RefusedFile]


class TrainingResult(TypedDict):
    """What the handler returns for a training.

    `loras` is the field of a request. `experts` are by name: high, low, or both for a model with a single one. A dry
    run has estimates in place of what is made; its seconds are the least and the most.
    """

    job_id: str
    status: Literal["completed"]
    model_version: str
    parameters: dict[str, Any]
    seed: int
    dataset: DatasetReport
    warnings: list[str]
    gpu: str
    timings: dict[str, float]
    cost_usd: float | None
    loras: NotRequired[list[TrainedLora]]
    experts: NotRequired[dict[str, TrainedExpert]]
    samples: NotRequired[list[TrainingSample]]
    peak_vram_bytes: NotRequired[int | None]
    dry_run: NotRequired[Literal[True]]
    estimated_peak_bytes: NotRequired[int]
    estimated_seconds: NotRequired[list[float] | None]


class CompletedEvent(TypedDict):
    """The final webhook of a video that was delivered."""

    type: Literal["completed"]
    status: Literal[True]
    code: Literal[200]
    message: str
    data: VideoResult
    event_id: str
    timestamp: str
    index: int
    total: int


class TrainedEvent(TypedDict):
    """The final webhook of a training."""

    type: Literal["completed"]
    status: Literal[True]
    code: Literal[200]
    message: Literal["LoRA Trained!"]
    data: TrainingResult
    event_id: str
    timestamp: str
    index: int
    total: int


class FailedEvent(TypedDict):
    """The final webhook of a video, or of a job that could not start, that failed."""

    type: Literal["failed"]
    status: Literal[False]
    code: int
    message: str
    data: VideoFailure
    event_id: str
    timestamp: str
    index: int | None
    total: int


class ProgressEvent(TypedDict):
    """`progress` is percent of the whole job. `step` of `steps` where they are known; `preview_url` after a preview."""

    type: Literal["progress"]
    job_id: str
    progress: Annotated[int, Field(ge=0, le=100)]
    status: Status
    event_id: str
    timestamp: str
    index: int | None
    total: int
    step: NotRequired[int]
    steps: NotRequired[int]
    eta_seconds: NotRequired[float]
    preview_url: NotRequired[str]
    preview_step: NotRequired[int]


Webhook = Annotated[CompletedEvent | FailedEvent | ProgressEvent, Field(discriminator="type")] | TrainedEvent
_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def answer_schema() -> dict[str, Any]:
    """JSON Schema of the answer."""
    schema = TypeAdapter(JobAnswer).json_schema()
    return {"$schema": _DRAFT, **schema, "title": "VideoGen-RunPod answer"}


def training_schema() -> dict[str, Any]:
    """JSON Schema of the answer of a training. One that fails is answered as any job is."""
    schema = TypeAdapter(TrainingResult).json_schema()
    definitions = {**schema.pop("$defs"), TrainingResult.__name__: schema}
    reference = f"#/$defs/{TrainingResult.__name__}"
    return {"$schema": _DRAFT, "title": "VideoGen-RunPod training", "$ref": reference, "$defs": definitions}


def webhook_schema() -> dict[str, Any]:
    """JSON Schema of the body of a webhook."""
    schema: dict[str, Any] = TypeAdapter(Webhook).json_schema()
    return {"$schema": _DRAFT, "title": "VideoGen-RunPod webhook", **schema}
