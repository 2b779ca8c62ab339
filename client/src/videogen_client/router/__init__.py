"""The router: the right backend for each video, within its price, and never paid twice.

async with Router(Policy.load(Path("router.toml"))) as router:
    job_id = await router.submit({"prompt": "a red fox in the snow", "tier": "draft"}, key="order-1")
    job = await router.result(job_id)
"""

from .backend import Backend, Capabilities, Clip, Estimate, State
from .driver import RouterTiming
from .errors import (
    BackendError,
    Gone,
    JobUnknown,
    KeyReused,
    Lost,
    NoCandidate,
    PolicyInvalid,
    Problem,
    Refused,
    RequestRefused,
    Unreadable,
)
from .jobs import Attempt, Job
from .policy import Policy
from .request import VideoRequest
from .router import Router

__all__ = [
    "Attempt",
    "Backend",
    "BackendError",
    "Capabilities",
    "Clip",
    "Estimate",
    "Gone",
    "Job",
    "JobUnknown",
    "KeyReused",
    "Lost",
    "NoCandidate",
    "Policy",
    "PolicyInvalid",
    "Problem",
    "Refused",
    "RequestRefused",
    "Router",
    "RouterTiming",
    "State",
    "Unreadable",
    "VideoRequest",
]
