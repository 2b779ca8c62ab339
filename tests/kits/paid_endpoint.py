"""An endpoint of RunPod with a worker that keeps a journal: it makes a video once for each `job_id`, and counts."""

from __future__ import annotations

import hashlib
import random
import uuid
from collections import Counter
from typing import Any

from tests.kits.endpoint_double import EndpointDouble, State, completed, failed, in_progress, in_queue


def video_of(endpoint: EndpointDouble, name: str, content: bytes, **more: Any) -> State:
    """What an answer has of a video whose file can be fetched."""
    endpoint.files[name] = content
    return {
        "index": 0,
        "status": "completed",
        "job_id": "a",
        "video_url": endpoint.file_url(name),
        "thumbnail_url": None,
        "seed": 7,
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        **more,
    }


def answer_of(*videos: State, status: str = "completed") -> State:
    return {"job_id": "a", "status": status, "videos": list(videos), "timings": {"total": 1.0}}


class PaidEndpoint(EndpointDouble):
    """Jobs of a job_id in `broken` fail. `forget` lets the endpoint lose what it knows of its jobs, as RunPod does 30
    minutes after their end; the journal stays. `on_the_way` is what a job's first looks find.
    """

    def __init__(self) -> None:
        super().__init__()
        self.paid: Counter[str] = Counter()
        self.broken: set[str] = set()
        self.on_the_way = [in_queue(), in_progress(), in_progress(50)]
        self._jobs: dict[str, State] = {}
        self._asked: Counter[str] = Counter()
        self._journal: dict[str, State] = {}

    def forget(self) -> None:
        self._jobs.clear()

    def made(self, job_id: str) -> int:
        return self.paid[job_id]

    def run(self, payload: object) -> State:
        """The worker takes every job, also one whose answer does not reach the client."""
        assert isinstance(payload, dict)
        run_id, job_id = f"{uuid.uuid4()}-u1", payload["job_id"]
        self._jobs[run_id] = payload
        if self._journal.setdefault(job_id, payload) == payload and f"{job_id}.mp4" not in self.files:
            self.paid[job_id] += 1
            self.files[f"{job_id}.mp4"] = random.Random(job_id).randbytes(20_000)
        return {"id": run_id, "status": "IN_QUEUE"}

    def status(self, job_id: str) -> State | None:
        if job_id not in self._jobs:
            return None
        self._asked[job_id] += 1
        states = [*self.on_the_way, self._ended(self._jobs[job_id])]
        return {"id": job_id, **states[min(self._asked[job_id], len(states)) - 1]}

    def _ended(self, payload: State) -> State:
        job_id = payload["job_id"]
        if job_id in self.broken:
            return failed('{"code": "internal", "message": "it failed", "path": null, "retryable": true}')
        if self._journal[job_id] != payload:
            return failed('{"code": "invalid_request", "message": "job_id: has another payload", "path": "job_id"}')
        return completed(answer_of(video_of(self, f"{job_id}.mp4", self.files[f"{job_id}.mp4"], job_id=job_id)))
