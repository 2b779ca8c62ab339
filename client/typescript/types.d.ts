// Written by `make docs` from the worker's own types. What a job sends, what it answers, what webhooks carry.

/** One LoRA of a video request, or a pair of them: one for each expert. */
export type LoraInput = {
  /** https URL, hub repo/file, or a file name in MODEL_CACHE_DIR/loras */
  source?: string | null;
  /** In place of source, beside low: the high-noise expert's file */
  high?: string | null;
  /** In place of source, beside high: the low-noise expert's file */
  low?: string | null;
  /** How strongly it applies; the range keeps weights finite */
  scale?: number | null;
  /** From the file's name where it says high or low noise, with a warning; else both */
  expert?: "high" | "low" | "both" | null;
};

/** One clip of a longer video. What it leaves out comes from the request around it. */
export type SegmentInput = {
  prompt?: string | null;
  num_frames?: number | null;
  /** Instead of num_frames */
  duration_seconds?: number | null;
  /** The request's, and one more for each segment */
  seed?: number | null;
  camera_motion?: "pan_left" | "pan_right" | "pan_up" | "pan_down" | "zoom_in" | "zoom_out" | "dolly_in" | "dolly_out" | "orbit_left" | "orbit_right" | "crane_up" | "crane_down" | "static" | "handheld" | null;
  loras?: Array<LoraInput> | null;
  /** The picture on which it ends */
  last_image_url?: string | null;
  /** cut: it begins afresh, from its words alone */
  transition?: "continue" | "cut" | null;
};

/** One video request as it is sent. */
export type VideoInput = {
  /** What the video shows; 1 to 4,000 characters after trimming */
  prompt: string;
  /** What to avoid; "" means none */
  negative_prompt?: string | null;
  /** First frame: http(s) URL or data: URI; makes it image-to-video */
  reference_image_url?: string | null;
  /** Last frame, beside reference_image_url */
  last_image_url?: string | null;
  /** Video-to-video; not together with an image */
  reference_video_url?: string | null;
  /** Video-to-video: how much is redrawn; 0.8 where not given */
  strength?: number | null;
  /** Pixels; 480 where not given (5b: 704). With a picture or video: from its aspect ratio */
  height?: number | null;
  /** Pixels; 832 where not given (5b: 1280). With a picture or video: from its aspect ratio */
  width?: number | null;
  /** The area of 832x480, 1024x576, 1280x720; not beside height or width */
  resolution?: "480p" | "580p" | "720p" | null;
  /** auto with a source, else 16:9, where not given; not beside height or width */
  aspect_ratio?: "16:9" | "9:16" | "1:1" | "4:3" | "3:4" | "3:2" | "2:3" | "21:9" | "9:21" | "auto" | null;
  /** 81 where not given (5b: 121) */
  num_frames?: number | null;
  /** Instead of num_frames: the nearest 4k + 1 frames at fps */
  duration_seconds?: number | null;
  /** 16 where not given; 24 for the 5b model. Another rate changes the speed */
  fps?: number | null;
  /** Above fps: frames are interpolated along the motion, the duration stays */
  target_fps?: number | null;
  num_inference_steps?: number | null;
  /** High-noise expert; 1 = no guidance */
  guidance_scale?: number | null;
  /** Low-noise expert; guidance_scale where not given */
  guidance_scale_2?: number | null;
  /** The share of the steps, from the first on, that are guided: fewer are faster */
  guidance_until?: number | null;
  /** The model's official value where not given */
  flow_shift?: number | null;
  /** Drawn at random where not given, or -1; always reported */
  seed?: number | null;
  /** Videos of this request, with seeds seed, seed + 1, ... */
  num_outputs?: number | null;
  camera_motion?: "pan_left" | "pan_right" | "pan_up" | "pan_down" | "zoom_in" | "zoom_out" | "dolly_in" | "dolly_out" | "orbit_left" | "orbit_right" | "crane_up" | "crane_down" | "static" | "handheld" | null;
  enhance_prompt?: boolean | null;
  /** Overrides num_inference_steps and guidance */
  quality_preset?: "draft" | "standard" | "high" | "ultra" | "turbo" | null;
  /** With turbo; hybrid: the high-noise expert undistilled and guided, for more motion */
  turbo_variant?: "full" | "hybrid" | null;
  /** Leaves out work in steps that change little; faster, and not exact */
  step_cache?: "off" | "balanced" | "fast" | null;
  model?: "a14b" | "5b" | null;
  loras?: Array<LoraInput> | null;
  /** A JPEG poster beside the video */
  thumbnail?: boolean | null;
  /** Rewrite the prompt by the operator's language model */
  prompt_expansion?: boolean | null;
  output_format?: "mp4" | "webm" | "gif" | "webp" | null;
  /** h264 where not given, vp9 in a WebM */
  output_codec?: "h264" | "hevc" | "av1" | "vp9" | null;
  /** H.264 at CRF 28, 23, 18, 12, and its equals */
  video_quality?: "low" | "medium" | "high" | "maximum" | null;
  /** A ZIP of the frames as PNG beside the video */
  frames_zip?: boolean | null;
  /** base64: the file is in the answer */
  response_format?: "url" | "base64" | null;
  /** A presigned PUT address of your own store for this video */
  upload_url?: string | null;
  /** Early looks at the video, in progress events: frames side by side, or animated */
  preview?: "off" | "strip" | "animated" | null;
  /** Shares of the steps after which a preview is made */
  preview_at?: Array<number> | null;
  /** End after the last preview, without a video; a strip if preview is off */
  preview_only?: boolean | null;
  /** The clips of one longer video, each the continuation of the one before */
  segments?: Array<SegmentInput> | null;
  /** keyframes: each segment ends on its last_image_url, on which the next begins; svi: each is held to the first picture by LoRAs that are on the worker */
  continuity?: "last_frame" | "keyframes" | "svi" | null;
  /** Frames of a segment that begin the next; with svi 5 */
  overlap_frames?: 1 | 5 | 9 | null;
  /** A video of yours that is continued, and begins the file */
  extend_video_url?: string | null;
  /** The end meets the beginning */
  loop?: boolean | null;
  /** Hold each segment's colours to the frames before it */
  color_match?: boolean | null;
};

/** One LoRA training as it is sent. */
export type TrainInput = {
  /** http(s) URL of a ZIP of videos and pictures with captions */
  training_data_url: string;
  /** Text-to-video, image-to-video, or the small model */
  model?: "a14b-t2v" | "a14b-i2v" | "5b" | null;
  /** Which experts of an A14B model are trained */
  experts?: "both" | "high" | "low" | null;
  /** Optimizer steps per expert; or {high, low} */
  number_of_steps?: number | {
    high?: number | null;
    low?: number | null;
  } | null;
  /** At its peak; or {high, low} */
  learning_rate?: number | {
    high?: number | null;
    low?: number | null;
  } | null;
  /** Of the LoRA's matrices: more can learn more, in larger files */
  rank?: number | null;
  /** It is scaled by alpha / rank; rank where not given */
  alpha?: number | null;
  /** Put before each caption that does not begin with it */
  trigger_phrase?: string | null;
  /** Share of the steps without a caption, so that guidance works */
  caption_dropout?: number | null;
  /** The area of 832x480, 1024x576, 1280x720; 480p where not given */
  resolution?: "480p" | "580p" | "720p" | null;
  /** Of a clip, at the model's rate; 81 where not given, lowered to the next 4k + 1 with a warning */
  num_frames?: number | null;
  /** Scale and crop what has another size; false refuses it, file by file */
  auto_scale_input?: boolean | null;
  /** Share of the files that is held out, to measure what was learned */
  validation_split?: number | null;
  /** A video of each with both experts, before and after */
  sample_prompts?: Array<string> | null;
  /** Steps from one checkpoint to the next */
  checkpoint_every?: number | null;
  /** Drawn at random where not given, or -1; always reported */
  seed?: number | null;
  /** The report on the data set, the plan, seconds and cost; nothing is trained */
  dry_run?: boolean | null;
};

export type Input = {
  /** Part of the storage key; the RunPod job id where not given */
  job_id?: string | null;
  /** http(s) URL that receives the events */
  webhook_url?: string | null;
  webhook_events?: Array<"progress" | "completed" | "failed"> | null;
  job_request_params: Array<VideoInput>;
} | {
  /** Part of the storage key; the RunPod job id where not given */
  job_id?: string | null;
  /** http(s) URL that receives the events */
  webhook_url?: string | null;
  webhook_events?: Array<"progress" | "completed" | "failed"> | null;
  /** What the video shows; 1 to 4,000 characters after trimming */
  prompt: string;
  /** What to avoid; "" means none */
  negative_prompt?: string | null;
  /** First frame: http(s) URL or data: URI; makes it image-to-video */
  reference_image_url?: string | null;
  /** Last frame, beside reference_image_url */
  last_image_url?: string | null;
  /** Video-to-video; not together with an image */
  reference_video_url?: string | null;
  /** Video-to-video: how much is redrawn; 0.8 where not given */
  strength?: number | null;
  /** Pixels; 480 where not given (5b: 704). With a picture or video: from its aspect ratio */
  height?: number | null;
  /** Pixels; 832 where not given (5b: 1280). With a picture or video: from its aspect ratio */
  width?: number | null;
  /** The area of 832x480, 1024x576, 1280x720; not beside height or width */
  resolution?: "480p" | "580p" | "720p" | null;
  /** auto with a source, else 16:9, where not given; not beside height or width */
  aspect_ratio?: "16:9" | "9:16" | "1:1" | "4:3" | "3:4" | "3:2" | "2:3" | "21:9" | "9:21" | "auto" | null;
  /** 81 where not given (5b: 121) */
  num_frames?: number | null;
  /** Instead of num_frames: the nearest 4k + 1 frames at fps */
  duration_seconds?: number | null;
  /** 16 where not given; 24 for the 5b model. Another rate changes the speed */
  fps?: number | null;
  /** Above fps: frames are interpolated along the motion, the duration stays */
  target_fps?: number | null;
  num_inference_steps?: number | null;
  /** High-noise expert; 1 = no guidance */
  guidance_scale?: number | null;
  /** Low-noise expert; guidance_scale where not given */
  guidance_scale_2?: number | null;
  /** The share of the steps, from the first on, that are guided: fewer are faster */
  guidance_until?: number | null;
  /** The model's official value where not given */
  flow_shift?: number | null;
  /** Drawn at random where not given, or -1; always reported */
  seed?: number | null;
  /** Videos of this request, with seeds seed, seed + 1, ... */
  num_outputs?: number | null;
  camera_motion?: "pan_left" | "pan_right" | "pan_up" | "pan_down" | "zoom_in" | "zoom_out" | "dolly_in" | "dolly_out" | "orbit_left" | "orbit_right" | "crane_up" | "crane_down" | "static" | "handheld" | null;
  enhance_prompt?: boolean | null;
  /** Overrides num_inference_steps and guidance */
  quality_preset?: "draft" | "standard" | "high" | "ultra" | "turbo" | null;
  /** With turbo; hybrid: the high-noise expert undistilled and guided, for more motion */
  turbo_variant?: "full" | "hybrid" | null;
  /** Leaves out work in steps that change little; faster, and not exact */
  step_cache?: "off" | "balanced" | "fast" | null;
  model?: "a14b" | "5b" | null;
  loras?: Array<LoraInput> | null;
  /** A JPEG poster beside the video */
  thumbnail?: boolean | null;
  /** Rewrite the prompt by the operator's language model */
  prompt_expansion?: boolean | null;
  output_format?: "mp4" | "webm" | "gif" | "webp" | null;
  /** h264 where not given, vp9 in a WebM */
  output_codec?: "h264" | "hevc" | "av1" | "vp9" | null;
  /** H.264 at CRF 28, 23, 18, 12, and its equals */
  video_quality?: "low" | "medium" | "high" | "maximum" | null;
  /** A ZIP of the frames as PNG beside the video */
  frames_zip?: boolean | null;
  /** base64: the file is in the answer */
  response_format?: "url" | "base64" | null;
  /** A presigned PUT address of your own store for this video */
  upload_url?: string | null;
  /** Early looks at the video, in progress events: frames side by side, or animated */
  preview?: "off" | "strip" | "animated" | null;
  /** Shares of the steps after which a preview is made */
  preview_at?: Array<number> | null;
  /** End after the last preview, without a video; a strip if preview is off */
  preview_only?: boolean | null;
  /** The clips of one longer video, each the continuation of the one before */
  segments?: Array<SegmentInput> | null;
  /** keyframes: each segment ends on its last_image_url, on which the next begins; svi: each is held to the first picture by LoRAs that are on the worker */
  continuity?: "last_frame" | "keyframes" | "svi" | null;
  /** Frames of a segment that begin the next; with svi 5 */
  overlap_frames?: 1 | 5 | 9 | null;
  /** A video of yours that is continued, and begins the file */
  extend_video_url?: string | null;
  /** The end meets the beginning */
  loop?: boolean | null;
  /** Hold each segment's colours to the frames before it */
  color_match?: boolean | null;
} | {
  /** Part of the storage key; the RunPod job id where not given */
  job_id?: string | null;
  /** http(s) URL that receives the events */
  webhook_url?: string | null;
  webhook_events?: Array<"progress" | "completed" | "failed"> | null;
  train: TrainInput;
};

/** What went wrong. `path` is the field it is about, null for none; `retryable`: the same payload may succeed. */
export type Error = {
  code: "invalid_request" | "unsupported" | "input_blocked" | "input_failed" | "input_invalid" | "cancelled" | "internal" | "encode_failed" | "upload_failed" | "model_unavailable" | "timeout" | "out_of_memory";
  message: string;
  path: string | null;
  retryable: boolean;
};

export type FoundProblem = {
  path: string | null;
  message: string;
};

/** How the file is marked as made by AI; null where AI_MARK is off. `digital_source_type` is a term of IPTC. */
export type Provenance = {
  digital_source_type: "trainedAlgorithmicMedia" | "compositeWithTrainedAlgorithmicMedia";
  c2pa: "signed" | "off";
  timestamped: boolean;
  instance_id: string;
};

/** One clip of a longer video; its frames are those of the file. `seam` is the step from the frame before over the median step inside, by mean absolute difference; null where there is nothing before. `color_drift` is the distance (CIE76) of its mean colour to that of the first segment. */
export type SegmentResult = {
  index: number;
  first_frame: number;
  num_frames: number;
  seed: number;
  prompt: string;
  seam: number | null;
  color_drift: number;
};

/** One video that was not made. `index` is null where no video of the job could start. */
export type VideoFailure = {
  index: number | null;
  status: "failed";
  job_id: string;
  error: Error;
  problems?: Array<FoundProblem>;
};

/** One video that was delivered. `timings` are seconds by stage, `parameters` every effective value. */
export type VideoResult = {
  index: number;
  status: "completed";
  job_id: string;
  video_url: string | null;
  thumbnail_url: string | null;
  frames_url?: string | null;
  preview_url?: string | null;
  video_base64?: string;
  duration_seconds: number;
  num_frames: number;
  resolution: string;
  fps: number;
  seed: number;
  prompt: string;
  negative_prompt: string;
  model_version: string;
  mode: "text_to_video" | "image_to_video" | "first_last_frame" | "video_to_video";
  parameters: Record<string, unknown>;
  warnings: Array<string>;
  size_bytes: number;
  sha256: string;
  timings: Record<string, number>;
  gpu: string;
  cost_usd: number | null;
  provenance: Provenance | null;
  cold_start?: Record<string, number>;
  segments?: Array<SegmentResult>;
};

/** What the handler returns. `error` is an `Error` as a JSON string, there where no video was delivered. */
export type Answer = {
  job_id: string;
  status: "completed" | "partial" | "failed";
  videos: Array<VideoResult | VideoFailure>;
  timings: Record<string, number>;
  error?: string;
  problems?: Array<FoundProblem>;
};

/** How many clips are trained on and held out, how many files are refused, and the first 200 of both. */
export type DatasetReport = {
  clips: number;
  held_out: number;
  refused: number;
  used_files: Array<UsedFile>;
  refused_files: Array<RefusedFile>;
};

export type MeasuredLoss = {
  step: number;
  loss: number;
};

export type RefusedFile = {
  name: string;
  reason: string;
};

/** What one expert learned: the loss on what was held out, null where nothing was, and the step of the least. */
export type TrainedExpert = {
  loss_before: number | null;
  loss_after: number | null;
  best_step: number;
  steps: number;
  losses: Array<MeasuredLoss>;
  sha256: string;
  size_bytes: number;
};

/** One of a request's `loras`: the files of both experts, or `source`, the file of one of them. */
export type TrainedLora = {
  high?: string;
  low?: string;
  source?: string;
  expert?: "high" | "low" | "both";
  scale: number;
};

/** One prompt, drawn by the model as it was and with the LoRAs, from the same seed. */
export type TrainingSample = {
  prompt: string;
  seed: number;
  before_url: string | null;
  after_url: string | null;
};

/** One file of the data set. `cropped` is the share of its picture, 0 to 1, outside the frame. */
export type UsedFile = {
  name: string;
  num_frames: number;
  cropped: number;
  held_out: boolean;
};

/** What the handler returns for a training. `loras` is the field of a request. `experts` are by name: high, low, or both for a model with a single one. A dry run has estimates in place of what is made; its seconds are the least and the most. */
export type TrainingResult = {
  job_id: string;
  status: "completed";
  model_version: string;
  parameters: Record<string, unknown>;
  seed: number;
  dataset: DatasetReport;
  warnings: Array<string>;
  gpu: string;
  timings: Record<string, number>;
  cost_usd: number | null;
  loras?: Array<TrainedLora>;
  experts?: Record<string, TrainedExpert>;
  samples?: Array<TrainingSample>;
  peak_vram_bytes?: number | null;
  dry_run?: true;
  estimated_peak_bytes?: number;
  estimated_seconds?: Array<number> | null;
};

export type Training = TrainingResult;

/** The final webhook of a video that was delivered. */
export type CompletedEvent = {
  type: "completed";
  status: true;
  code: 200;
  message: string;
  data: VideoResult;
  event_id: string;
  timestamp: string;
  index: number;
  total: number;
};

/** The final webhook of a video, or of a job that could not start, that failed. */
export type FailedEvent = {
  type: "failed";
  status: false;
  code: number;
  message: string;
  data: VideoFailure;
  event_id: string;
  timestamp: string;
  index: number | null;
  total: number;
};

/** `progress` is percent of the whole job. `step` of `steps` where they are known; `preview_url` after a preview. */
export type ProgressEvent = {
  type: "progress";
  job_id: string;
  progress: number;
  status: "queued" | "loading" | "generating" | "encoding" | "uploading" | "preparing" | "training" | "sampling";
  event_id: string;
  timestamp: string;
  index: number | null;
  total: number;
  step?: number;
  steps?: number;
  eta_seconds?: number;
  preview_url?: string;
  preview_step?: number;
};

/** The final webhook of a training. */
export type TrainedEvent = {
  type: "completed";
  status: true;
  code: 200;
  message: "LoRA Trained!";
  data: TrainingResult;
  event_id: string;
  timestamp: string;
  index: number;
  total: number;
};

export type Webhook = CompletedEvent | FailedEvent | ProgressEvent | TrainedEvent;
