"""Every check of the doctor in the order of the report, and those that the start of a worker makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from worker.base.settings import PRELOADABLE
from worker.doctor import attention, disks, ffmpeg, gpu, marks, network, plans, settings, storage, weights
from worker.doctor.deployment import Deployment
from worker.doctor.report import Finding, Status

_SICK_VOLUME = "the volume does not answer: check it in RunPod's console, or start a worker elsewhere"
_NETWORK = "check the network of the worker, then run the doctor again"


@dataclass(frozen=True, slots=True)
class Check:
    """`run` has `limit_s`; where it does not return in that time, the line is `silent` with `advice`."""

    name: str
    run: Callable[[Deployment], Finding]
    limit_s: float = 8.0
    silent: Status = "FAIL"
    advice: str = _SICK_VOLUME


CHECKS: tuple[Check, ...] = (
    Check("settings", settings.check),
    Check("webhook signing", settings.check_signing),
    Check("gpu", gpu.check),
    *(Check(f"plan {key}", partial(plans.check, key=key)) for key in PRELOADABLE),
    Check("host memory", plans.check_host),
    Check("shared memory", lambda _: disks.check_shared_memory()),
    Check("attention", attention.check, silent="WARN", advice="importing Diffusers is slow here: run the doctor again"),
    Check("volume", disks.check_volume),
    *(Check(f"weights {key}", partial(weights.check, key=key), limit_s=9.0) for key in PRELOADABLE),
    Check("model disk", disks.check_models),
    Check("state", disks.check_state),
    Check("disk", disks.check_temporary, advice="the container's disk hangs: end this worker"),
    Check("ffmpeg", ffmpeg.check, advice="end this worker; where it happens again, check the image"),
    Check("storage", storage.check, advice="check DIGITAL_OCEAN_ENDPOINT_URL and the network of the worker"),
    Check("marks", marks.check, silent="WARN", advice=_NETWORK),
    Check("hub token", network.check_token, silent="WARN", advice=_NETWORK),
    Check("clock", network.check_clock, silent="WARN", advice=_NETWORK),
)


def before_loading(preload: tuple[str, ...]) -> tuple[Check, ...]:
    """What the start checks first: it takes milliseconds, and would come too late after minutes of loading."""
    return (
        Check("settings", settings.check),
        Check("gpu", gpu.check),
        *(Check(f"plan {key}", partial(plans.check, key=key)) for key in preload),
        *(Check(f"weights {key}", partial(weights.check_presence, key=key)) for key in preload),
    )


# What the start checks while the models load: the storage and an encode take a moment.
BESIDE_LOADING: tuple[Check, ...] = (
    Check("webhook signing", settings.check_signing),
    Check("volume", disks.check_volume),
    Check("state", disks.check_state),
    Check("ffmpeg", ffmpeg.check),
    Check("storage", storage.check_accepts),
    Check("marks", marks.check),
)
VERIFY: tuple[Check, ...] = tuple(
    Check(f"weights {key}", partial(weights.verify, key=key), limit_s=float("inf")) for key in PRELOADABLE
)
