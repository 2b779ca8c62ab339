"""The GPU and its driver: is there one, does this torch run on it, does it compute, is it free?"""

from __future__ import annotations

import re

from worker.doctor.deployment import Deployment, Device
from worker.doctor.report import Finding, fail, ok, warn

_GIB = 1024**3
# A process of its own, such as a worker that runs beside the doctor, shows as memory in use; a context is 0.6 GB.
_IN_USE_BYTES = 2 * _GIB
_CHOOSE = "choose a GPU of the Ampere generation or later for the endpoint"
_OTHER_MACHINE = "end this worker, so that the platform starts another on another machine; report this one to RunPod"


def check(deployment: Deployment) -> Finding:
    """What the GPU is, or why there is none that serves."""
    device = deployment.device
    if device.silent_s is not None:
        return fail(f"the GPU did not answer in {device.silent_s:.0f} s", _OTHER_MACHINE, stops_jobs=True)
    if device.gpu is None and device.failure is not None:
        return fail(f"the GPU cannot be asked ({device.failure})", _OTHER_MACHINE, stops_jobs=True)
    if device.gpu is None:
        return _absent(device, demo=deployment.profile == "demo")
    return _present(device)


def _absent(device: Device, *, demo: bool) -> Finding:
    if demo:
        return ok("no CUDA GPU is visible to this worker: the demo model runs on the CPU")
    none = "no CUDA GPU is visible to this worker"
    cuda = device.driver.cuda
    if device.torch_cuda is None:
        return fail(
            f"{none}, and torch is built without CUDA",
            "choose a GPU type for the endpoint, and install torch's CUDA build (the image does)",
            stops_jobs=True,
        )
    if cuda is None:
        return fail(f"{none}, nor its driver", "choose a GPU type for the endpoint", stops_jobs=True)
    if cuda < _version(device.torch_cuda):
        return fail(
            f"{none}: its driver{_release(device)} serves CUDA {_text(cuda)}, and torch needs {device.torch_cuda}",
            f"allow only hosts with CUDA {device.torch_cuda} or later in the endpoint's settings",
            stops_jobs=True,
        )
    return fail(
        f"{none}, though its driver{_release(device)} is there",
        "choose a GPU type for the endpoint; unset CUDA_VISIBLE_DEVICES where it hides the GPU",
        stops_jobs=True,
    )


def _present(device: Device) -> Finding:
    gpu = device.gpu
    assert gpu is not None
    capability = _text(gpu.compute_capability)
    name = f"{gpu.name}, {gpu.vram_bytes / _GIB:.1f} GiB, compute capability {capability}"
    if not gpu.has_bf16:
        return fail(f"{name}: it cannot compute in bf16", _CHOOSE, stops_jobs=True)
    if not runs_on(gpu.compute_capability, device.architectures):
        return fail(
            f"{name}: this torch holds kernels for {', '.join(device.architectures)} only",
            "choose another GPU type for the endpoint, or an image whose torch knows this one",
            stops_jobs=True,
        )
    if device.failure is not None:
        return fail(
            f"{name}: a small computation failed ({device.failure})",
            _OTHER_MACHINE,
            stops_jobs=True,
        )
    in_use = gpu.vram_bytes - device.free_bytes if device.free_bytes is not None else 0
    if in_use > _IN_USE_BYTES:
        return warn(
            f"{name}: {in_use / _GIB:.1f} GiB of its memory are in use already",
            "expected while a worker runs beside the doctor; otherwise end what uses the GPU",
        )
    driver = f"driver{_release(device)} for CUDA {_text(device.driver.cuda)}" if device.driver.cuda else "no driver"
    several = f"; the first of {device.count} GPUs" if device.count > 1 else ""
    return ok(f"{name}; {driver}, torch for CUDA {device.torch_cuda}{several}")


def runs_on(capability: tuple[int, int], architectures: tuple[str, ...]) -> bool:
    """Whether kernels for `architectures` run: those of the same generation up to it, or any older one's PTX."""
    for name in architectures:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]*", name)
        if found is None:
            continue
        built = int(found[2]), int(found[3])
        if built <= capability and (found[1] == "compute" or built[0] == capability[0]):
            return True
    return not architectures


def _version(text: str) -> tuple[int, int]:
    major, _, rest = text.partition(".")
    return int(major), int(rest.partition(".")[0] or 0)


def _text(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _release(device: Device) -> str:
    return f" {device.driver.release}" if device.driver.release is not None else ""
