"""A client of VideoGen-RunPod: sends jobs, follows them, fetches and checks the videos.

with Client("endpoint-id", "api-key") as client:
    answer = client.generate({"prompt": "a red fox in the snow"})
    client.download(answer["videos"][0], "fox.mp4")
"""

from .async_client import AsyncClient
from .client import Client
from .core import Timing
from .errors import (
    CancelRefused,
    DownloadCorrupt,
    DownloadFailed,
    EndpointRefused,
    EndpointUnavailable,
    InvalidSignature,
    Job,
    JobNotFound,
    JobRefused,
    Timeout,
    UnexpectedAnswer,
    VideoFailed,
    VideoGenError,
)
from .state import JobState, Progress
from .webhooks import verify_webhook

__all__ = [
    "AsyncClient",
    "CancelRefused",
    "Client",
    "DownloadCorrupt",
    "DownloadFailed",
    "EndpointRefused",
    "EndpointUnavailable",
    "InvalidSignature",
    "Job",
    "JobNotFound",
    "JobRefused",
    "JobState",
    "Progress",
    "Timeout",
    "Timing",
    "UnexpectedAnswer",
    "VideoFailed",
    "VideoGenError",
    "verify_webhook",
]
