"""What may be asked, of which models, and what fits a GPU: pure functions of the payload, settings and GPU."""

from worker.request.catalogue import CATALOGUE, Mode, ModelSpec, choose
from worker.request.payload import Limits
from worker.request.values import Job, Lora, Output, VideoRequest

__all__ = [
    "CATALOGUE",
    "Job",
    "Limits",
    "Lora",
    "Mode",
    "ModelSpec",
    "Output",
    "VideoRequest",
    "choose",
]
