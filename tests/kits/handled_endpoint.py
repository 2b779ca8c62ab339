"""An endpoint of RunPod whose jobs a real handler.py carries out, and counts what was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.kits.endpoint_double import EndpointDouble, State
from tests.kits.platform_double import Platform


class HandledEndpoint(EndpointDouble):
    """`platform` has a worker. The files that it leaves in its folder are served, as a bucket would serve them.

    `forget` lets the endpoint lose what it knows of its jobs; the worker's journal stays.
    """

    def __init__(self, platform: Platform) -> None:
        super().__init__(platform)
        self._jobs: set[str] = set()

    def forget(self) -> None:
        self._jobs.clear()

    def run(self, payload: object) -> State:
        answer = super().run(payload)
        self._jobs.add(answer["id"])
        return answer

    def status(self, job_id: str) -> State | None:
        state = super().status(job_id) if job_id in self._jobs else None
        if state is not None and state["status"] == "COMPLETED":
            for video in state["output"]["videos"]:
                name = f"{state['output']['job_id']}.mp4"
                self.files[name] = Path(urlsplit(video["video_url"]).path).read_bytes()
                video["video_url"] = self.file_url(name)
                del video["video_base64"]
        return state

    def made(self, job_id: str) -> int:
        """How often the video of a `job_id` was made: the journal returns the same seconds again."""
        assert self.platform is not None
        outputs: list[Any] = [each.get("output") for results in self.platform.results.values() for each in results]
        videos = [video for each in outputs if each and each.get("job_id") == job_id for video in each["videos"]]
        return len({json.dumps(video["timings"]) for video in videos if video["status"] == "completed"})
