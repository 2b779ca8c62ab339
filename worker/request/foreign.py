"""What other services call the things that a request can say here: a table, from which docs/request.md has its own.

Names of fal, Replicate, RunPod's public endpoints, WaveSpeed, Runware, Together, OpenAI's videos, SGLang, vLLM-Omni,
LightX2V and the ComfyUI workers, compared without case, hyphens and underscores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Foreign:
    """`names` that others have for our field `ours`, None where there is nothing of the kind; `note`: what to send."""

    ours: str | None
    names: tuple[str, ...]
    note: str = ""

    def complaint(self) -> str:
        told = "nothing of the kind is offered" if self.ours is None else f"did you mean {self.ours}?"
        return f"is not a field here; {told}" + (f" {self.note}" if self.note else "")


def plain(name: str) -> str:
    """A name as it is compared: `imageUrl`, `image-url` and `image_url` are one."""
    return name.lower().replace("_", "").replace("-", "")


def _of(ours: str | None, names: str, note: str = "") -> Foreign:
    return Foreign(ours, tuple(names.split()), note)


_PICTURE = "Send an http(s) URL or a data: URI"
_VIDEO = (
    _of("prompt", "text text_prompt prompt_text positive_prompt positive input_text"),
    _of("negative_prompt", "negative neg_prompt n_prompt negative_text sample_neg_prompt"),
    _of(
        "reference_image_url",
        """image image_url image_urls images image_path image_base64 image_data image_input img img_url init_image
        init_image_url input_image input_image_url source_image source_image_url start_image start_image_url start_frame
        start_frame_url first_frame first_frame_url first_frame_image first_image first_image_url first_image_path
        reference_image reference_images reference_image_urls reference_image_base64 ref_image ref_image_url
        ref_images_url input_reference image_reference reference_url subject_reference frame_images keyframes photo""",
        _PICTURE,
    ),
    _of(
        "last_image_url",
        """end_image end_image_url end_image_path end_image_base64 end_frame end_frame_url last_image last_image_path
        last_frame last_frame_url last_frame_path last_frame_image last_image_base64 tail_image tail_image_url
        image_tail final_image final_frame end_img last_img""",
        _PICTURE,
    ),
    _of(
        "reference_video_url",
        """video video_url video_urls video_path video_base64 input_video input_video_url source_video source_video_url
        init_video reference_video reference_videos ref_video ref_video_url video_reference""",
        "Send an http(s) URL",
    ),
    _of("strength", "denoise denoising_strength denoise_strength video_strength image_strength"),
    _of(
        "width and height",
        "size image_size video_size frame_size dimensions output_size target_shape",
        "Send two integers, or resolution and aspect_ratio",
    ),
    _of("resolution", "res video_resolution output_resolution quality_resolution"),
    _of("aspect_ratio", "ratio aspect ar video_aspect_ratio"),
    _of(
        "num_frames",
        """frames frame_count frames_count number_of_frames nframes frame_num total_frames length
        target_video_length video_frames""",
        "Send the number of frames; duration_seconds takes seconds",
    ),
    _of(
        "duration_seconds",
        "duration seconds duration_s duration_sec length_seconds video_duration clip_duration video_seconds",
        "Send a number of seconds",
    ),
    _of("num_frames or duration_seconds", "video_length clip_length"),
    _of("fps", "frames_per_second frame_rate fps_number video_fps sample_fps save_fps resample_fps"),
    _of(
        "target_fps",
        """interpolate interpolation interpolate_output interpolator interpolator_model num_interpolated_frames
        enable_interpolation frame_interpolation enable_frame_interpolation frame_interpolation_exp rife output_fps
        interpolation_fps adjust_fps_for_interpolation""",
        "Send the frames a second of the file, as 32",
    ),
    _of(
        "num_inference_steps",
        """steps step num_steps n_steps sampling_steps sample_steps infer_steps inference_steps diffusion_steps
        denoising_steps number_of_steps""",
    ),
    _of(
        "guidance_scale",
        "cfg cfg_scale guidance sample_guide_scale guide_scale true_cfg_scale cfg_high guidance_scale_high",
    ),
    _of("guidance_scale_2", "cfg_low guidance_scale_low guidance_2 cfg_scale_2"),
    _of("flow_shift", "shift sample_shift sigma_shift timestep_shift sampling_shift"),
    _of("seed", "random_seed noise_seed rng_seed manual_seed base_seed"),
    _of(
        "num_outputs",
        """n num_images num_videos num_samples number_results number_of_videos num_outputs_per_prompt
        num_videos_per_prompt num_images_per_prompt batch_size""",
    ),
    _of("camera_motion", "motion camera camera_movement camera_control camera_move camera_motions", "Send its name"),
    _of("enhance_prompt", "use_prompt_enhancer prompt_enhancer enhance prompt_enhancement prompt_enhance"),
    _of(
        "prompt_expansion",
        """enable_prompt_expansion expand_prompt enable_prompt_optimization optimize_prompt prompt_optimizer
        prompt_extend use_prompt_extend extend_prompt""",
    ),
    _of("quality_preset", "preset speed_preset"),
    _of(
        "quality_preset or step_cache",
        "acceleration speed speed_mode",
        'turbo takes 4 distilled steps; step_cache "balanced" or "fast" leaves out work',
    ),
    _of("quality_preset", "go_fast fast_mode use_turbo turbo turbo_mode lightning use_lightning", 'Send "turbo"'),
    _of("guidance_until", "guidance_end guidance_end_percent cfg_end_percent", "Send a share, 0 to 1"),
    _of("step_cache", "teacache enable_teacache use_teacache cache_dit enable_cache", '"balanced" or "fast"'),
    _of(
        "loras",
        "lora lora_pairs lora_pair lora_url lora_path lora_name lora_urls",
        "Send a list of {source, scale, expert}, or of pairs {high, low, scale}",
    ),
    _of(
        "loras",
        """lora_weights lora_scale lora_strength lora_weight lora_strength_model lora_strength_clip
        lora_weights_transformer lora_scale_transformer lora_weights_transformer_2 lora_scale_transformer_2""",
        "Send a list of {source, scale, expert}",
    ),
    _of(
        "loras",
        "high_noise_loras low_noise_loras high_noise_lora low_noise_lora loras_high loras_low",
        'Send a list of {source, scale, expert}, expert "high" or "low"',
    ),
    _of("thumbnail", "poster enable_thumbnail return_thumbnail generate_thumbnail"),
    _of("output_format", "format container file_format output_type video_format output_video_format"),
    _of("output_codec", "codec video_codec encoder"),
    _of(
        "video_quality",
        "quality output_quality crf x264_preset output_compression video_bitrate bitrate",
        "Send low, medium, high or maximum",
    ),
    _of("frames_zip", "return_frames_zip frames_as_zip save_frames return_frames output_frames"),
    _of(
        "response_format",
        "sync_mode base64 return_base64 as_base64 output_base64 return_video_base64 delivery_method",
        'Send "base64" for the file in the answer',
    ),
    _of(
        "upload_url",
        "presigned_url upload_endpoint put_url output_url output_video_url save_result_path output_path",
        "Send a presigned PUT address",
    ),
    _of(None, "audio audio_url audio_path generate_audio enable_audio with_audio sound speech audio_reference"),
    _of(None, "mask mask_url mask_image mask_image_url mask_video_url control_video control_image pose_video"),
    _of(None, "upscale upscaling enable_upscaling upscaler super_resolution sr_ratio upscaling_scale"),
    _of(None, "reverse reverse_video loop_video single_frame motion_strength motion_bucket_id motion_score"),
    _of(None, "scheduler sampler sampler_name sample_solver solver boundary_ratio boundary clip_skip"),
    _of(None, "workflow", "This worker runs no ComfyUI workflow: send prompt and the fields of the request"),
    _of(None, "extra_params extra_body extra_args", "Send the fields themselves"),
)
_JOB = (
    _of(
        "webhook_url",
        "webhook webhooks callback callback_url callback_uri webhook_uri hook_url notify_url notify_hook",
    ),
    _of("webhook_events", "webhook_events_filter callback_events"),
    _of("job_request_params", "requests videos params job_params prompts"),
    _of(
        "train",
        "training training_request lora_training train_params fine_tune training_data_url training_data",
        "Send an object with training_data_url",
    ),
    _of("the fields inside it", "input inputs", "They stand in the event's input itself"),
    _of("upload_url", "s3_config bucket_creds", "The worker's own bucket is set by its operator"),
)
_LORA = (
    _of("source", "path url lora_url lora lora_path lora_name file filename weights model_url repo"),
    _of("source", "weight_name", "Send OWNER/REPO/FILE"),
    _of("scale", "weight strength lora_scale lora_strength lora_weight strength_model multiplier model_strength"),
    _of("expert", "transformer target stage noise noise_level noise_stage experts applies_to"),
    _of("high", "high_noise high_url high_path high_lora high_noise_url high_noise_lora high_model"),
    _of("low", "low_noise low_url low_path low_lora low_noise_url low_noise_lora low_model"),
    _of(
        "scale",
        "high_weight low_weight high_scale low_scale high_strength low_strength scales",
        "It holds for both: send two LoRAs with an expert each where the two differ",
    ),
)
_TRAINING = (
    _of(
        "training_data_url",
        """data data_url dataset dataset_url training_data training_data_zip zip zip_url archive_url images_data_url
        images_url videos_url input_images input_videos images videos data_path""",
        "Send the http(s) URL of a ZIP",
    ),
    _of("model", "base_model model_name model_id base model_type"),
    _of("experts", "expert transformer noise_level noise_stage train_high_noise train_low_noise target"),
    _of(
        "number_of_steps",
        """steps num_steps n_steps train_steps training_steps max_train_steps max_steps num_train_steps total_steps
        iterations num_train_epochs epochs""",
        "Send optimizer steps for each expert",
    ),
    _of("learning_rate", "lr learning_rates unet_lr"),
    _of("rank", "lora_rank network_dim network_rank lora_dim dim linear"),
    _of("alpha", "lora_alpha network_alpha linear_alpha"),
    _of("trigger_phrase", "trigger_word trigger trigger_words instance_prompt token_string token activation_text"),
    _of("caption_dropout", "caption_dropout_rate caption_dropout_p cfg_dropout"),
    _of(
        "resolution",
        "width height size image_size video_size resolutions target_resolution aspect_ratio",
        "Send 480p, 580p or 720p",
    ),
    _of("num_frames", "frames frame_count number_of_frames target_frames video_frames length video_length"),
    _of("auto_scale_input", "auto_scale resize scale_input"),
    _of("validation_split", "val_split validation_share eval_split test_split"),
    _of("sample_prompts", "sample_prompt validation_prompts validation_prompt prompts prompt samples"),
    _of("checkpoint_every", "save_every save_steps save_every_n_steps checkpointing_steps checkpoint_steps"),
    _of("seed", "random_seed manual_seed"),
    _of("dry_run", "validate_only estimate_only"),
    _of(None, "optimizer optimizer_type lr_scheduler batch_size train_batch_size gradient_accumulation_steps"),
    _of(None, "is_style use_face_detection use_face_cropping use_masks video_clip_mode include_synthetic_captions"),
    _of(None, "resume_from resume_from_checkpoint", "The same job sent again goes on from its last checkpoint"),
)
# By what the names stand in.
TABLES: Mapping[str, Sequence[Foreign]] = {
    "a video": _VIDEO,
    "a job": _JOB,
    "a LoRA": _LORA,
    "a training": _TRAINING,
}


def _index(*tables: Sequence[Foreign]) -> Mapping[str, Foreign]:
    return {plain(name): entry for table in tables for entry in table for name in entry.names}


OF_VIDEO, OF_JOB, OF_LORA, OF_FLAT = _index(_VIDEO), _index(_JOB), _index(_LORA), _index(_JOB, _VIDEO)
OF_TRAINING = _index(_TRAINING)
OF_EXPERTS = _index([entry for entry in _LORA if entry.ours in ("high", "low")])
