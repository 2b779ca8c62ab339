"""Written by `make docs` from the worker's own types: what a job sends and answers, what webhooks carry."""

from typing import Any, Literal, NotRequired, TypedDict


class LoraInput(TypedDict):
    """One LoRA of a video request, or a pair of them: one for each expert."""

    # https URL, hub repo/file, or a file name in MODEL_CACHE_DIR/loras
    source: NotRequired[str | None]
    # In place of source, beside low: the high-noise expert's file
    high: NotRequired[str | None]
    # In place of source, beside high: the low-noise expert's file
    low: NotRequired[str | None]
    # How strongly it applies; the range keeps weights finite
    scale: NotRequired[float | None]
    # From the file's name where it says high or low noise, with a warning; else both
    expert: NotRequired[Literal["high", "low", "both"] | None]


class SegmentInput(TypedDict):
    """One clip of a longer video. What it leaves out comes from the request around it."""

    prompt: NotRequired[str | None]
    num_frames: NotRequired[int | None]
    # Instead of num_frames
    duration_seconds: NotRequired[float | None]
    # The request's, and one more for each segment
    seed: NotRequired[int | None]
    camera_motion: NotRequired[Literal["pan_left", "pan_right", "pan_up", "pan_down", "zoom_in", "zoom_out", "dolly_in", "dolly_out", "orbit_left", "orbit_right", "crane_up", "crane_down", "static", "handheld"] | None]
    loras: NotRequired["list[LoraInput] | None"]
    # The picture on which it ends
    last_image_url: NotRequired[str | None]
    # cut: it begins afresh, from its words alone
    transition: NotRequired[Literal["continue", "cut"] | None]


class VideoInput(TypedDict):
    """One video request as it is sent."""

    # What the video shows; 1 to 4,000 characters after trimming
    prompt: str
    # What to avoid; "" means none
    negative_prompt: NotRequired[str | None]
    # First frame: http(s) URL or data: URI; makes it image-to-video
    reference_image_url: NotRequired[str | None]
    # Last frame, beside reference_image_url
    last_image_url: NotRequired[str | None]
    # Video-to-video; not together with an image
    reference_video_url: NotRequired[str | None]
    # Video-to-video: how much is redrawn; 0.8 where not given
    strength: NotRequired[float | None]
    # Pixels; 480 where not given (5b: 704). With a picture or video: from its aspect ratio
    height: NotRequired[int | None]
    # Pixels; 832 where not given (5b: 1280). With a picture or video: from its aspect ratio
    width: NotRequired[int | None]
    # The area of 832x480, 1024x576, 1280x720; not beside height or width
    resolution: NotRequired[Literal["480p", "580p", "720p"] | None]
    # auto with a source, else 16:9, where not given; not beside height or width
    aspect_ratio: NotRequired[Literal["16:9", "9:16", "1:1", "4:3", "3:4", "3:2", "2:3", "21:9", "9:21", "auto"] | None]
    # 81 where not given (5b: 121)
    num_frames: NotRequired[int | None]
    # Instead of num_frames: the nearest 4k + 1 frames at fps
    duration_seconds: NotRequired[float | None]
    # 16 where not given; 24 for the 5b model. Another rate changes the speed
    fps: NotRequired[int | None]
    # Above fps: frames are interpolated along the motion, the duration stays
    target_fps: NotRequired[int | None]
    num_inference_steps: NotRequired[int | None]
    # High-noise expert; 1 = no guidance
    guidance_scale: NotRequired[float | None]
    # Low-noise expert; guidance_scale where not given
    guidance_scale_2: NotRequired[float | None]
    # The share of the steps, from the first on, that are guided: fewer are faster
    guidance_until: NotRequired[float | None]
    # The model's official value where not given
    flow_shift: NotRequired[float | None]
    # Drawn at random where not given, or -1; always reported
    seed: NotRequired[int | None]
    # Videos of this request, with seeds seed, seed + 1, ...
    num_outputs: NotRequired[int | None]
    camera_motion: NotRequired[Literal["pan_left", "pan_right", "pan_up", "pan_down", "zoom_in", "zoom_out", "dolly_in", "dolly_out", "orbit_left", "orbit_right", "crane_up", "crane_down", "static", "handheld"] | None]
    enhance_prompt: NotRequired[bool | None]
    # Overrides num_inference_steps and guidance
    quality_preset: NotRequired[Literal["draft", "standard", "high", "ultra", "turbo"] | None]
    # With turbo; hybrid: the high-noise expert undistilled and guided, for more motion
    turbo_variant: NotRequired[Literal["full", "hybrid"] | None]
    # Leaves out work in steps that change little; faster, and not exact
    step_cache: NotRequired[Literal["off", "balanced", "fast"] | None]
    model: NotRequired[Literal["a14b", "5b"] | None]
    loras: NotRequired["list[LoraInput] | None"]
    # A JPEG poster beside the video
    thumbnail: NotRequired[bool | None]
    # Rewrite the prompt by the operator's language model
    prompt_expansion: NotRequired[bool | None]
    output_format: NotRequired[Literal["mp4", "webm", "gif", "webp"] | None]
    # h264 where not given, vp9 in a WebM
    output_codec: NotRequired[Literal["h264", "hevc", "av1", "vp9"] | None]
    # H.264 at CRF 28, 23, 18, 12, and its equals
    video_quality: NotRequired[Literal["low", "medium", "high", "maximum"] | None]
    # A ZIP of the frames as PNG beside the video
    frames_zip: NotRequired[bool | None]
    # base64: the file is in the answer
    response_format: NotRequired[Literal["url", "base64"] | None]
    # A presigned PUT address of your own store for this video
    upload_url: NotRequired[str | None]
    # Early looks at the video, in progress events: frames side by side, or animated
    preview: NotRequired[Literal["off", "strip", "animated"] | None]
    # Shares of the steps after which a preview is made
    preview_at: NotRequired[list[float] | None]
    # End after the last preview, without a video; a strip if preview is off
    preview_only: NotRequired[bool | None]
    # The clips of one longer video, each the continuation of the one before
    segments: NotRequired["list[SegmentInput] | None"]
    # keyframes: each segment ends on its last_image_url, on which the next begins; svi: each is held to the first picture by LoRAs that are on the worker
    continuity: NotRequired[Literal["last_frame", "keyframes", "svi"] | None]
    # Frames of a segment that begin the next; with svi 5
    overlap_frames: NotRequired[Literal[1, 5, 9] | None]
    # A video of yours that is continued, and begins the file
    extend_video_url: NotRequired[str | None]
    # The end meets the beginning
    loop: NotRequired[bool | None]
    # Hold each segment's colours to the frames before it
    color_match: NotRequired[bool | None]


class TrainInput(TypedDict):
    """One LoRA training as it is sent."""

    # http(s) URL of a ZIP of videos and pictures with captions
    training_data_url: str
    # Text-to-video, image-to-video, or the small model
    model: NotRequired[Literal["a14b-t2v", "a14b-i2v", "5b"] | None]
    # Which experts of an A14B model are trained
    experts: NotRequired[Literal["both", "high", "low"] | None]
    # Optimizer steps per expert; or {high, low}
    number_of_steps: NotRequired[int | dict[str, Any] | None]
    # At its peak; or {high, low}
    learning_rate: NotRequired[float | dict[str, Any] | None]
    # Of the LoRA's matrices: more can learn more, in larger files
    rank: NotRequired[int | None]
    # It is scaled by alpha / rank; rank where not given
    alpha: NotRequired[float | None]
    # Put before each caption that does not begin with it
    trigger_phrase: NotRequired[str | None]
    # Share of the steps without a caption, so that guidance works
    caption_dropout: NotRequired[float | None]
    # The area of 832x480, 1024x576, 1280x720; 480p where not given
    resolution: NotRequired[Literal["480p", "580p", "720p"] | None]
    # Of a clip, at the model's rate; 81 where not given, lowered to the next 4k + 1 with a warning
    num_frames: NotRequired[int | None]
    # Scale and crop what has another size; false refuses it, file by file
    auto_scale_input: NotRequired[bool | None]
    # Share of the files that is held out, to measure what was learned
    validation_split: NotRequired[float | None]
    # A video of each with both experts, before and after
    sample_prompts: NotRequired[list[str] | None]
    # Steps from one checkpoint to the next
    checkpoint_every: NotRequired[int | None]
    # Drawn at random where not given, or -1; always reported
    seed: NotRequired[int | None]
    # The report on the data set, the plan, seconds and cost; nothing is trained
    dry_run: NotRequired[bool | None]


class FullInput(TypedDict):
    """The whole `input` of a RunPod event, for the exported schema."""

    # Part of the storage key; the RunPod job id where not given
    job_id: NotRequired[str | None]
    # http(s) URL that receives the events
    webhook_url: NotRequired[str | None]
    webhook_events: NotRequired[list[Literal["progress", "completed", "failed"]] | None]
    job_request_params: "list[VideoInput]"


class SingleVideoInput(TypedDict):
    """One video request with the fields of the job beside it."""

    # Part of the storage key; the RunPod job id where not given
    job_id: NotRequired[str | None]
    # http(s) URL that receives the events
    webhook_url: NotRequired[str | None]
    webhook_events: NotRequired[list[Literal["progress", "completed", "failed"]] | None]
    # What the video shows; 1 to 4,000 characters after trimming
    prompt: str
    # What to avoid; "" means none
    negative_prompt: NotRequired[str | None]
    # First frame: http(s) URL or data: URI; makes it image-to-video
    reference_image_url: NotRequired[str | None]
    # Last frame, beside reference_image_url
    last_image_url: NotRequired[str | None]
    # Video-to-video; not together with an image
    reference_video_url: NotRequired[str | None]
    # Video-to-video: how much is redrawn; 0.8 where not given
    strength: NotRequired[float | None]
    # Pixels; 480 where not given (5b: 704). With a picture or video: from its aspect ratio
    height: NotRequired[int | None]
    # Pixels; 832 where not given (5b: 1280). With a picture or video: from its aspect ratio
    width: NotRequired[int | None]
    # The area of 832x480, 1024x576, 1280x720; not beside height or width
    resolution: NotRequired[Literal["480p", "580p", "720p"] | None]
    # auto with a source, else 16:9, where not given; not beside height or width
    aspect_ratio: NotRequired[Literal["16:9", "9:16", "1:1", "4:3", "3:4", "3:2", "2:3", "21:9", "9:21", "auto"] | None]
    # 81 where not given (5b: 121)
    num_frames: NotRequired[int | None]
    # Instead of num_frames: the nearest 4k + 1 frames at fps
    duration_seconds: NotRequired[float | None]
    # 16 where not given; 24 for the 5b model. Another rate changes the speed
    fps: NotRequired[int | None]
    # Above fps: frames are interpolated along the motion, the duration stays
    target_fps: NotRequired[int | None]
    num_inference_steps: NotRequired[int | None]
    # High-noise expert; 1 = no guidance
    guidance_scale: NotRequired[float | None]
    # Low-noise expert; guidance_scale where not given
    guidance_scale_2: NotRequired[float | None]
    # The share of the steps, from the first on, that are guided: fewer are faster
    guidance_until: NotRequired[float | None]
    # The model's official value where not given
    flow_shift: NotRequired[float | None]
    # Drawn at random where not given, or -1; always reported
    seed: NotRequired[int | None]
    # Videos of this request, with seeds seed, seed + 1, ...
    num_outputs: NotRequired[int | None]
    camera_motion: NotRequired[Literal["pan_left", "pan_right", "pan_up", "pan_down", "zoom_in", "zoom_out", "dolly_in", "dolly_out", "orbit_left", "orbit_right", "crane_up", "crane_down", "static", "handheld"] | None]
    enhance_prompt: NotRequired[bool | None]
    # Overrides num_inference_steps and guidance
    quality_preset: NotRequired[Literal["draft", "standard", "high", "ultra", "turbo"] | None]
    # With turbo; hybrid: the high-noise expert undistilled and guided, for more motion
    turbo_variant: NotRequired[Literal["full", "hybrid"] | None]
    # Leaves out work in steps that change little; faster, and not exact
    step_cache: NotRequired[Literal["off", "balanced", "fast"] | None]
    model: NotRequired[Literal["a14b", "5b"] | None]
    loras: NotRequired["list[LoraInput] | None"]
    # A JPEG poster beside the video
    thumbnail: NotRequired[bool | None]
    # Rewrite the prompt by the operator's language model
    prompt_expansion: NotRequired[bool | None]
    output_format: NotRequired[Literal["mp4", "webm", "gif", "webp"] | None]
    # h264 where not given, vp9 in a WebM
    output_codec: NotRequired[Literal["h264", "hevc", "av1", "vp9"] | None]
    # H.264 at CRF 28, 23, 18, 12, and its equals
    video_quality: NotRequired[Literal["low", "medium", "high", "maximum"] | None]
    # A ZIP of the frames as PNG beside the video
    frames_zip: NotRequired[bool | None]
    # base64: the file is in the answer
    response_format: NotRequired[Literal["url", "base64"] | None]
    # A presigned PUT address of your own store for this video
    upload_url: NotRequired[str | None]
    # Early looks at the video, in progress events: frames side by side, or animated
    preview: NotRequired[Literal["off", "strip", "animated"] | None]
    # Shares of the steps after which a preview is made
    preview_at: NotRequired[list[float] | None]
    # End after the last preview, without a video; a strip if preview is off
    preview_only: NotRequired[bool | None]
    # The clips of one longer video, each the continuation of the one before
    segments: NotRequired["list[SegmentInput] | None"]
    # keyframes: each segment ends on its last_image_url, on which the next begins; svi: each is held to the first picture by LoRAs that are on the worker
    continuity: NotRequired[Literal["last_frame", "keyframes", "svi"] | None]
    # Frames of a segment that begin the next; with svi 5
    overlap_frames: NotRequired[Literal[1, 5, 9] | None]
    # A video of yours that is continued, and begins the file
    extend_video_url: NotRequired[str | None]
    # The end meets the beginning
    loop: NotRequired[bool | None]
    # Hold each segment's colours to the frames before it
    color_match: NotRequired[bool | None]


class TrainingInput(TypedDict):
    """One LoRA training with the fields of the job beside it."""

    # Part of the storage key; the RunPod job id where not given
    job_id: NotRequired[str | None]
    # http(s) URL that receives the events
    webhook_url: NotRequired[str | None]
    webhook_events: NotRequired[list[Literal["progress", "completed", "failed"]] | None]
    train: "TrainInput"


Input = FullInput | SingleVideoInput | TrainingInput


class Error(TypedDict):
    """What went wrong. `path` is the field it is about, null for none; `retryable`: the same payload may succeed."""

    code: Literal["invalid_request", "unsupported", "input_blocked", "input_failed", "input_invalid", "cancelled", "internal", "encode_failed", "upload_failed", "model_unavailable", "timeout", "out_of_memory"]
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
    """One clip of a longer video; its frames are those of the file. `seam` is the step from the frame before over the median step inside, by mean absolute difference; null where there is nothing before. `color_drift` is the distance (CIE76) of its mean colour to that of the first segment."""

    index: int
    first_frame: int
    num_frames: int
    seed: int
    prompt: str
    seam: float | None
    color_drift: float


class VideoFailure(TypedDict):
    """One video that was not made. `index` is null where no video of the job could start."""

    index: int | None
    status: Literal["failed"]
    job_id: str
    error: "Error"
    problems: NotRequired["list[FoundProblem]"]


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
    resolution: str
    fps: int
    seed: int
    prompt: str
    negative_prompt: str
    model_version: str
    mode: Literal["text_to_video", "image_to_video", "first_last_frame", "video_to_video"]
    parameters: dict[str, Any]
    warnings: list[str]
    size_bytes: int
    sha256: str
    timings: dict[str, float]
    gpu: str
    cost_usd: float | None
    provenance: "Provenance | None"
    cold_start: NotRequired[dict[str, float]]
    segments: NotRequired["list[SegmentResult]"]


class Answer(TypedDict):
    """What the handler returns. `error` is an `Error` as a JSON string, there where no video was delivered."""

    job_id: str
    status: Literal["completed", "partial", "failed"]
    videos: "list[VideoResult | VideoFailure]"
    timings: dict[str, float]
    error: NotRequired[str]
    problems: NotRequired["list[FoundProblem]"]


class DatasetReport(TypedDict):
    """How many clips are trained on and held out, how many files are refused, and the first 200 of both."""

    clips: int
    held_out: int
    refused: int
    used_files: "list[UsedFile]"
    refused_files: "list[RefusedFile]"


class MeasuredLoss(TypedDict):
    step: int
    loss: float


class RefusedFile(TypedDict):
    name: str
    reason: str


class TrainedExpert(TypedDict):
    """What one expert learned: the loss on what was held out, null where nothing was, and the step of the least."""

    loss_before: float | None
    loss_after: float | None
    best_step: int
    steps: int
    losses: "list[MeasuredLoss]"
    sha256: str
    size_bytes: int


class TrainedLora(TypedDict):
    """One of a request's `loras`: the files of both experts, or `source`, the file of one of them."""

    high: NotRequired[str]
    low: NotRequired[str]
    source: NotRequired[str]
    expert: NotRequired[Literal["high", "low", "both"]]
    scale: float


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


class TrainingResult(TypedDict):
    """What the handler returns for a training. `loras` is the field of a request. `experts` are by name: high, low, or both for a model with a single one. A dry run has estimates in place of what is made; its seconds are the least and the most."""

    job_id: str
    status: Literal["completed"]
    model_version: str
    parameters: dict[str, Any]
    seed: int
    dataset: "DatasetReport"
    warnings: list[str]
    gpu: str
    timings: dict[str, float]
    cost_usd: float | None
    loras: NotRequired["list[TrainedLora]"]
    experts: NotRequired["dict[str, TrainedExpert]"]
    samples: NotRequired["list[TrainingSample]"]
    peak_vram_bytes: NotRequired[int | None]
    dry_run: NotRequired[Literal[True]]
    estimated_peak_bytes: NotRequired[int]
    estimated_seconds: NotRequired[list[float] | None]


Training = TrainingResult


class CompletedEvent(TypedDict):
    """The final webhook of a video that was delivered."""

    type: Literal["completed"]
    status: Literal[True]
    code: Literal[200]
    message: str
    data: "VideoResult"
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
    data: "VideoFailure"
    event_id: str
    timestamp: str
    index: int | None
    total: int


class ProgressEvent(TypedDict):
    """`progress` is percent of the whole job. `step` of `steps` where they are known; `preview_url` after a preview."""

    type: Literal["progress"]
    job_id: str
    progress: int
    status: Literal["queued", "loading", "generating", "encoding", "uploading", "preparing", "training", "sampling"]
    event_id: str
    timestamp: str
    index: int | None
    total: int
    step: NotRequired[int]
    steps: NotRequired[int]
    eta_seconds: NotRequired[float]
    preview_url: NotRequired[str]
    preview_step: NotRequired[int]


class TrainedEvent(TypedDict):
    """The final webhook of a training."""

    type: Literal["completed"]
    status: Literal[True]
    code: Literal[200]
    message: Literal["LoRA Trained!"]
    data: "TrainingResult"
    event_id: str
    timestamp: str
    index: int
    total: int


Webhook = CompletedEvent | FailedEvent | ProgressEvent | TrainedEvent
