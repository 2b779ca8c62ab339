"""Payloads as other services take them: each is refused with our field, or means here what it means there."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kits.request_kit import flat_video, problems_of
from worker.request import foreign
from worker.request.payload import JobInput, LoraInput, VideoInput
from worker.request.training_payload import TrainingInput, TrainInput

URL = "https://example.com/a.png"
LORA = "https://example.com/a.safetensors"
# What is sent beside a prompt, and what is refused: each path with our name for it, None where we have nothing of it.
REFUSED: list[tuple[dict[str, Any], dict[str, str | None]]] = [
    # fal
    (
        {"image_url": URL, "end_image_url": URL, "frames_per_second": 16},
        {"image_url": "reference_image_url", "end_image_url": "last_image_url", "frames_per_second": "fps"},
    ),
    ({"shift": 5, "guidance_scale": 3.5}, {"shift": "flow_shift"}),
    ({"acceleration": "regular"}, {"acceleration": "quality_preset or step_cache"}),
    (
        {"interpolator_model": "film", "num_interpolated_frames": 1},
        dict.fromkeys(["interpolator_model", "num_interpolated_frames"], "target_fps"),
    ),
    ({"adjust_fps_for_interpolation": True}, {"adjust_fps_for_interpolation": "target_fps"}),
    ({"enable_prompt_expansion": True}, {"enable_prompt_expansion": "prompt_expansion"}),
    ({"video_url": URL, "strength": 0.9}, {"video_url": "reference_video_url"}),
    ({"resample_fps": 16}, {"resample_fps": "fps"}),
    ({"sync_mode": True}, {"sync_mode": "response_format"}),
    ({"return_frames_zip": True}, {"return_frames_zip": "frames_zip"}),
    ({"use_turbo": True}, {"use_turbo": "quality_preset"}),
    ({"reverse_video": True}, {"reverse_video": None}),
    ({"mask_video_url": URL}, {"mask_video_url": None}),
    ({"num_images": 2}, {"num_images": "num_outputs"}),
    (
        {"loras": [{"path": LORA, "weight_name": "a.safetensors", "transformer": "high"}]},
        {
            "loras[0].path": "source",
            "loras[0].weight_name": "source",
            "loras[0].transformer": "expert",
            "loras[0].source": "source",
        },
    ),
    # Replicate
    ({"image": URL, "last_image": URL}, {"image": "reference_image_url", "last_image": "last_image_url"}),
    ({"go_fast": True}, {"go_fast": "quality_preset"}),
    ({"fast_mode": "Balanced"}, {"fast_mode": "quality_preset"}),
    ({"sample_shift": 12}, {"sample_shift": "flow_shift"}),
    (
        {"sample_steps": 30, "sample_guide_scale": 5},
        {"sample_steps": "num_inference_steps", "sample_guide_scale": "guidance_scale"},
    ),
    ({"interpolate_output": True}, {"interpolate_output": "target_fps"}),
    ({"optimize_prompt": True}, {"optimize_prompt": "prompt_expansion"}),
    (
        {"lora_weights_transformer": LORA, "lora_scale_transformer": 1},
        dict.fromkeys(["lora_weights_transformer", "lora_scale_transformer"], "loras"),
    ),
    # RunPod's public endpoints, WaveSpeed
    ({"size": "1280*720"}, {"size": "width and height"}),
    ({"duration": 5, "guidance": 5}, {"duration": "duration_seconds", "guidance": "guidance_scale"}),
    ({"enable_prompt_optimization": False}, {"enable_prompt_optimization": "prompt_expansion"}),
    ({"high_noise_loras": [], "low_noise_loras": []}, dict.fromkeys(["high_noise_loras", "low_noise_loras"], "loras")),
    # Runware, Together
    (
        {"positivePrompt": "a", "CFGScale": 5, "numberResults": 2, "steps": 30},
        {
            "positivePrompt": "prompt",
            "CFGScale": "guidance_scale",
            "numberResults": "num_outputs",
            "steps": "num_inference_steps",
        },
    ),
    ({"frameImages": [URL]}, {"frameImages": "reference_image_url"}),
    ({"outputQuality": 90, "uploadEndpoint": URL}, {"outputQuality": "video_quality", "uploadEndpoint": "upload_url"}),
    ({"webhookURL": URL}, {"webhookURL": "webhook_url"}),
    ({"source_video": URL, "ratio": "16:9"}, {"source_video": "reference_video_url", "ratio": "aspect_ratio"}),
    # OpenAI's videos, SGLang, vLLM-Omni
    ({"seconds": "4", "size": "1280x720"}, {"seconds": "duration_seconds", "size": "width and height"}),
    ({"input_reference": {"image_url": URL}}, {"input_reference": "reference_image_url"}),
    ({"n": 2}, {"n": "num_outputs"}),
    ({"num_outputs_per_prompt": 2}, {"num_outputs_per_prompt": "num_outputs"}),
    ({"enable_frame_interpolation": True}, {"enable_frame_interpolation": "target_fps"}),
    ({"enable_teacache": True}, {"enable_teacache": "step_cache"}),
    ({"boundary_ratio": 0.9}, {"boundary_ratio": None}),
    ({"generate_audio": True}, {"generate_audio": None}),
    ({"extra_params": {"steps": 3}}, {"extra_params": None}),
    # LightX2V
    (
        {"infer_steps": 4, "target_video_length": 81, "image_path": "a.png", "last_frame_path": "b.png"},
        {
            "infer_steps": "num_inference_steps",
            "target_video_length": "num_frames",
            "image_path": "reference_image_url",
            "last_frame_path": "last_image_url",
        },
    ),
    (
        {"presigned_url": URL, "use_prompt_enhancer": True},
        {"presigned_url": "upload_url", "use_prompt_enhancer": "enhance_prompt"},
    ),
    # ComfyUI's workers
    ({"workflow": {"3": {}}, "images": []}, {"workflow": None, "images": "reference_image_url"}),
    (
        {"image_base64": "AAAA", "length": 81, "cfg": 3.5, "lora_pairs": [{"high": "a", "low": "b"}]},
        {
            "image_base64": "reference_image_url",
            "length": "num_frames",
            "cfg": "guidance_scale",
            "lora_pairs": "loras",
        },
    ),
    (
        {"loras": [{"high": "a", "low": "b", "high_weight": 1, "low_weight": 1}]},
        {"loras[0].high_weight": "scale", "loras[0].low_weight": "scale"},
    ),
    ({"sampler_name": "euler", "denoise": 0.5}, {"sampler_name": None, "denoise": "strength"}),
    # Other hosts
    ({"preset": "draft"}, {"preset": "quality_preset"}),
    (
        {"first_frame_url": URL, "tail_image": URL},
        {"first_frame_url": "reference_image_url", "tail_image": "last_image_url"},
    ),
    ({"negative": "blur"}, {"negative": "negative_prompt"}),
    ({"motion": "zoom"}, {"motion": "camera_motion"}),
    ({"num_steps": 20, "sampling_steps": 20}, dict.fromkeys(["num_steps", "sampling_steps"], "num_inference_steps")),
    ({"image_size": "landscape_16_9", "fps_number": 16}, {"image_size": "width and height", "fps_number": "fps"}),
    ({"callback_url": URL}, {"callback_url": "webhook_url"}),
    ({"lora_url": LORA}, {"lora_url": "loras"}),
    ({"loras": [{"source": "a", "weight": 1}]}, {"loras[0].weight": "scale"}),
    ({"loras": [{"source": "a", "strength": 1}]}, {"loras[0].strength": "scale"}),
]
# What is taken, and what it means.
TAKEN: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"num_frames": 81.0, "seed": -1, "resolution": "580p", "aspect_ratio": "16:9"}, {"width": 1024, "height": 576}),
    ({"guidance_scale": 3.5, "guidance_scale_2": 4}, {"guidance_scale": 3.5, "guidance_scale_2": 4.0}),
    ({"image_url": None, "webhook": None}, {"mode": "text_to_video"}),
    ({"enable_safety_checker": True, "disable_safety_checker": True, "video_write_mode": "fast"}, {"num_frames": 81}),
    ({"resolution": "720p", "aspect_ratio": "9:16"}, {"width": 720, "height": 1280}),
    ({"model": "5b", "seed": 3}, {"width": 1280, "height": 704, "num_frames": 121, "fps": 24, "seed": 3}),
]


@pytest.mark.parametrize(("sent", "refused"), REFUSED)
@pytest.mark.parametrize("listed", [False, True])
def test_a_payload_of_another_service_is_refused_with_our_names(
    sent: dict[str, Any], refused: dict[str, str | None], listed: bool
) -> None:
    video = {"prompt": "a cat", **sent}
    of_job = [name for name in video if name.lower().startswith(("webhook", "callback"))]
    job = {name: video.pop(name) for name in of_job} if listed else {}
    payload = {**job, "job_request_params": [video]} if listed else video
    found = {(path or "").removeprefix("job_request_params[0]."): why for path, why in problems_of(payload).items()}
    assert found.keys() == refused.keys()
    for path, ours in refused.items():
        if path != "loras[0].source":  # is missing, because it has another name
            assert ("nothing of the kind" if ours is None else f"did you mean {ours}?") in found[path]


@pytest.mark.parametrize(("sent", "meant"), TAKEN)
def test_a_payload_of_another_service_means_what_it_means_there(sent: dict[str, Any], meant: dict[str, Any]) -> None:
    video = flat_video(**sent)
    assert {name: getattr(video, name) for name in meant} == meant


def test_enough_payloads_are_tried() -> None:
    assert len(REFUSED) + len(TAKEN) >= 40


@pytest.mark.parametrize(
    ("table", "fields"),
    [
        ("a video", VideoInput.model_fields),
        ("a job", TrainingInput.model_fields),
        ("a LoRA", LoraInput.model_fields),
        ("a training", TrainInput.model_fields),
    ],
)
def test_every_name_is_anothers_and_leads_to_ours(table: str, fields: dict[str, object]) -> None:
    ours = {*JobInput.model_fields, *VideoInput.model_fields, *fields, "job_request_params", "the fields inside it"}
    plain = [foreign.plain(name) for entry in foreign.TABLES[table] for name in entry.names]
    assert len(plain) == len(set(plain))
    assert set(plain).isdisjoint(map(foreign.plain, fields))
    for entry in foreign.TABLES[table]:
        for name in (entry.ours or "").replace(" and ", " or ").split(" or "):
            assert name in ours or entry.ours is None
