"""What a mutant is, and those of the engine and of what a request may ask for. `benchmarks.mutants` runs them.

Each is one small text of one file, so that it outlives a move of lines. Where the text is gone the mutant is an error
that names it: write it against the new code, or remove it together with the rule that it guarded.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """`old` is found once in `file` and becomes `new`. `tests` are arguments of pytest, one of which must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


_ENGINE = "tests/unit/engine"
_MODES = f"{_ENGINE}/test_modes.py"
_VIDEO = "worker/engine/modes/video_to_video.py"
_SCHEDULES = "worker/engine/modes/schedules.py"
_GATE, _TEST_NET = "worker/net/gate.py", "tests/unit/net/test_net_gate.py tests/faults/test_hostile_urls.py"
_PLAN, _TEST_PLAN = "worker/request/plan/plan.py", "tests/unit/request/test_memory_plan.py"
_DEVICE = "worker/engine/device.py"
_INPUTS, _TEST_FIT = "worker/media/inputs.py", "tests/unit/media/test_inputs_fit.py"

_OF_THE_ENGINE = (
    Mutant("the source video ignored", _VIDEO, "latents=(1 - sigma) * source + sigma * noise", "latents=noise", _MODES),
    Mutant("latents normalised by + mean", _VIDEO, "(latents - mean) / std", "(latents + mean) / std", _MODES),
    Mutant("pixels by / 255", _VIDEO, "/ 127.5 - 1", "/ 255", _MODES),
    Mutant(
        "strength ignored", _VIDEO, "max(int(len(self.timesteps) * self.strength), 1)", "len(self.timesteps)", _MODES
    ),
    Mutant(
        "first and last image swapped in the pipeline",
        "worker/engine/modes/pipelines.py",
        "image=conditioning.image, last_image=conditioning.last_image",
        "image=conditioning.last_image, last_image=conditioning.image",
        _MODES,
    ),
    Mutant(
        "the request's shift ignored",
        _SCHEDULES,
        "spec.flow_shift if request.flow_shift is None else request.flow_shift",
        "spec.flow_shift",
        f"{_ENGINE}/test_engine.py -k each_expert_has",
    ),
    Mutant(
        "another distilled timestep",
        _SCHEDULES,
        "SIGMAS = (1.0, 0.75, 0.5, 0.25)",
        "SIGMAS = (1.0, 0.75, 0.5, 0.2)",
        f"{_ENGINE}/test_engine.py -k turbo_runs",
    ),
    Mutant(
        "UniPC's history crosses the boundary",
        _SCHEDULES,
        "if sigma > _shifted(SIGMAS[2]) + 1e-4:",
        "if sigma > 0:",
        f"{_ENGINE}/test_turbo_schedule.py -k euler",
    ),
    Mutant(
        "guidance by the high-noise expert's scale alone",
        "worker/engine/modes/base.py",
        "(high if self._timestep_on_host >= boundary else low) > 1",
        "high > 1",
        f"{_ENGINE}/test_engine.py -k guidance",
    ),
    Mutant(
        "the second guidance scale dropped",
        "worker/engine/denoise.py",
        "boundary_ratio is None else request.guidance_scale_2",
        "boundary_ratio is None else request.guidance_scale",
        f"{_ENGINE}/test_engine.py -k guidance",
    ),
    Mutant(
        "NaN becomes a video",
        "worker/engine/denoise.py",
        "if not bool(torch.isfinite(latents).all()):",
        "if False:",
        f"{_ENGINE}/test_engine.py -k not_numbers",
    ),
    Mutant(
        "no second try after out of memory",
        "worker/engine/engine.py",
        "rendering = self._try(replace(video, plan=lower), watcher, stop)",
        "rendering = None",
        f"{_ENGINE}/test_residency.py -k out_of_memory",
    ),
    Mutant(
        "frames once more after out of memory",
        "worker/engine/engine.py",
        "if number >= given:",
        "if number >= 0:",
        f"{_ENGINE}/test_residency.py -k while_decoding",
    ),
    Mutant("levels cut, not rounded", "worker/engine/decode.py", ".round_()", "", f"{_ENGINE}/test_decode.py"),
    Mutant(
        "latents decoded by - mean",
        "worker/engine/decode.py",
        "latents / inverse_std + mean",
        "latents / inverse_std - mean",
        f"{_ENGINE}/test_decode.py",
    ),
    Mutant(
        "swap parks nothing",
        "worker/engine/models/residency.py",
        "self._parked[self._current].park()\n            self._current = None\n        if (parked",
        "self._current = None\n        if (parked",
        f"{_ENGINE}/test_residency.py -k leaves_the_device",
    ),
    Mutant(
        "every step may be left out",
        "worker/engine/techniques/step_cache.py",
        "margin = max(1, round(FULL_SHARE * steps))",
        "margin = 0",
        f"{_ENGINE}/test_step_cache_rule.py -k tenth",
    ),
    Mutant(
        "the step cache stays on",
        "worker/engine/techniques/step_cache.py",
        "expert.disable_cache()",
        "pass",
        f"{_ENGINE}/test_step_cache.py -k same_before_and_after",
    ),
    Mutant(
        "the high LoRA on the low-noise expert",
        "worker/engine/techniques/turbo.py",
        'files.high.name, 1.0, "high", path',
        'files.high.name, 1.0, "low", path',
        f"{_ENGINE}/test_turbo.py -k 'carries or those_of_their'",
    ),
    Mutant(
        "a LoRA for one expert on both",
        "worker/engine/techniques/lora.py",
        'if each.expert in (name, "both")}',
        "if each.expert}",
        f"{_ENGINE}/test_lora_apply.py",
    ),
    Mutant(
        "a LoRA's scale ignored",
        "worker/engine/techniques/lora.py",
        "[fit.scale for fit in loaded]",
        "[1.0 for fit in loaded]",
        f"{_ENGINE}/test_lora_apply.py",
    ),
    Mutant(
        "int8 cut, not rounded",
        "worker/engine/models/precision.py",
        "(rows.float() / scale).round_()",
        "(rows.float() / scale)",
        f"{_ENGINE}/test_scaled_linear.py {_ENGINE}/test_quantized_compute.py",
    ),
    Mutant(
        "host memory not divided among the GPUs",
        _DEVICE,
        "share // crew_size(settings, torch.cuda.device_count())",
        "share",
        "tests/unit/engine tests/unit/request -k 'planner or host or memory_limit or device'",
    ),
    Mutant(
        "the container's memory limit ignored",
        _DEVICE,
        "min(total, int(limit)) if limit.isdigit() else total",
        "total",
        "tests/unit/engine tests/unit/request -k 'planner or host or memory_limit or device'",
    ),
)

_OF_THE_REQUEST = (
    Mutant(
        "a number of frames that is not 4k + 1",
        "worker/request/settle.py",
        "frames = (given - 1) // stride * stride + 1",
        "frames = given",
        "tests/unit/request",
    ),
    Mutant(
        "a side off the stride",
        "worker/request/sizing.py",
        "sides.append(given // stride * stride)",
        "sides.append(given)",
        "tests/unit/request",
    ),
    Mutant(
        "twice the pixels allowed",
        "worker/request/sizing.py",
        "if pixels > limits.max_pixels and",
        "if pixels > 2 * limits.max_pixels and",
        "tests/unit/request",
    ),
    Mutant(
        "hybrid's own steps dropped",
        "worker/request/settle.py",
        'settled = HYBRID if video.turbo_variant == "hybrid" else (steps, guidance, guidance)',
        "settled = (steps, guidance, guidance)",
        "tests/unit/request tests/unit/engine/test_turbo.py",
    ),
    Mutant(
        "the negative prompt dropped",
        "worker/request/settle.py",
        "negative_prompt=video.negative_prompt,",
        'negative_prompt="",',
        "tests/unit/request",
    ),
    Mutant(
        "a given seed ignored",
        "worker/request/settle.py",
        "new_seed() if video.seed in (None, -1) else video.seed",
        "new_seed()",
        "tests/unit/request",
    ),
    Mutant("a plan that does not fit", _PLAN, "if peak <= limit:", "if True:", _TEST_PLAN),
    Mutant(
        "the text encoder off the GPU first",
        "worker/request/plan/ladder.py",
        '("resident", "resident"),\n        ("resident", "offloaded"),',
        '("resident", "offloaded"),\n        ("resident", "resident"),',
        _TEST_PLAN,
    ),
    Mutant(
        "a long prompt loses its camera move",
        "worker/request/prompt.py",
        "_ENCODER_BUDGET_TOKENS = 450",
        "_ENCODER_BUDGET_TOKENS = 4500",
        "tests/unit/request/test_prompt_camera.py",
    ),
    Mutant(
        "a user name in a URL",
        _GATE,
        'if "@" in parts.netloc:',
        "if False:",
        _TEST_NET,
    ),
    Mutant(
        "every port of an allowlisted host",
        _GATE,
        "if opening.port is not None and opening.port != target.port:",
        "if False:",
        _TEST_NET,
    ),
    Mutant("nearest instead of Lanczos", _INPUTS, "Resampling.LANCZOS", "Resampling.NEAREST", _TEST_FIT),
    Mutant("a size beyond the area", _INPUTS, "lowest, min(highest, pixels // lowest))", "lowest, highest)", _TEST_FIT),
    Mutant(
        "loose base64",
        _INPUTS,
        "(-len(letters) % 4), validate=True)",
        "(-len(letters) % 4))",
        "tests/unit/media/test_inputs_sources.py",
    ),
    Mutant(
        "a settled size off the stride",
        _INPUTS,
        "return width // stride * stride, height // stride * stride",
        "return width, height",
        _TEST_FIT,
    ),
)

MUTANTS = (*_OF_THE_ENGINE, *_OF_THE_REQUEST)
