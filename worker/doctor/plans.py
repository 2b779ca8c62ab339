"""The memory plan of each model for the standard shape, and the host memory that plans and loading need."""

from __future__ import annotations

from dataclasses import replace

from worker.base.errors import SettingsError, WorkerError
from worker.doctor.deployment import Deployment
from worker.doctor.report import Finding, fail, from_message, ok, warn
from worker.request import CATALOGUE, ModelSpec
from worker.request import plan as memory

_GB = 1e9
_GIB = 1024**3
# RunPod's SDK refuses to start a worker with less (RUNPOD_MIN_MEMORY_GB).
_SDK_LEAST_BYTES = 4_000_000_000
_BF16_BYTES = 2
_OTHER_GPU = "choose a GPU with more memory (the table GPUs of README.md says what each holds)"
_MORE_MEMORY = "choose a machine with more main memory for each GPU"


def spec_of(key: str) -> ModelSpec:
    return next(spec for spec in CATALOGUE if spec.key == key)


def check(deployment: Deployment, key: str) -> Finding:
    """How the model is arranged for 832x480 with 81 frames; a refusal is fatal for a model of PRELOAD."""
    if deployment.profile == "demo":
        return ok("the demo model needs less than 1 GB")
    gpu = deployment.planner.gpu
    if gpu is None:
        return warn("not worked out: there is no GPU", "fix what the line gpu says")
    spec = spec_of(key)
    try:
        plan = deployment.planner.plan(spec, memory.STANDARD)
    except SettingsError as failure:
        found, advice = from_message("; ".join(failure.problems))
        return fail(found, advice or _OTHER_GPU, stops_jobs=True)
    except WorkerError:
        return _smaller(deployment, spec)
    budget = f"{plan.estimated_peak_bytes / _GB:.0f} of {gpu.budget_bytes / _GB:.0f} GB at the peak"
    return ok(f"{memory.STANDARD}: {plan.rung}, {budget}, {plan.host_bytes / _GB:.0f} GB of host memory")


def _smaller(deployment: Deployment, spec: ModelSpec) -> Finding:
    planner, settings = deployment.planner, deployment.settings
    assert planner.gpu is not None
    best = planner.largest(spec)
    if best is not None:
        return warn(f"{memory.STANDARD} does not fit {planner.gpu.name}; the largest that does is {best}", _OTHER_GPU)
    found = f"model {spec.key} does not fit {planner.gpu.name} at any size"
    advice = (
        f"{_OTHER_GPU}; unset ENABLE_CPU_OFFLOAD, ENABLE_SEQUENTIAL_CPU_OFFLOAD and QUANTIZATION where they are set"
    )
    if spec.key in settings.preload:
        return fail(found, advice, stops_jobs=True)
    return warn(f"{found}: its jobs are refused", advice)


def check_host(deployment: Deployment) -> Finding:
    """Whether main memory holds what loading and the plans put there."""
    host = deployment.host
    found = f"{host.total_bytes / _GIB:.1f} GiB, {host.available_bytes / _GIB:.1f} GiB available"
    if host.available_bytes < _SDK_LEAST_BYTES:
        return fail(found, "RunPod's SDK refuses to start with less than 4 GB available: choose a larger machine")
    if deployment.profile == "demo" or deployment.planner.gpu is None:
        return ok(found)
    for spec in (spec_of(key) for key in deployment.settings.preload):
        expert_bytes = memory.size_of(spec).expert_params * _BF16_BYTES
        if host.total_bytes < expert_bytes:
            expert = f"one expert of {spec.key}, {expert_bytes / _GB:.0f} GB in bf16"
            return warn(f"{found}: loading reads {expert}, into main memory first", _MORE_MEMORY)
        if slower := _slowed(deployment, spec):
            return warn(f"{found}: {slower}", _MORE_MEMORY)
    return ok(found)


def _slowed(deployment: Deployment, spec: ModelSpec) -> str | None:
    """What the host's memory costs: the arrangement that the GPU alone would allow is another one."""
    planner = deployment.planner
    try:
        limited = planner.standard(spec)
        free = replace(planner, host_limit_bytes=None).plan(spec, memory.STANDARD)
    except (WorkerError, SettingsError):
        return None  # the plan's own line says it
    if limited.rung == free.rung:
        return None
    waiting = f"{free.host_bytes / _GB:.0f} GB of weights waiting there"
    return f"model {spec.key} runs as {limited.rung}; with room for {waiting} it would as {free.rung}"
