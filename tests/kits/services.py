"""The protocols of the services that the router knows, as far as it uses them, on `service_double`."""

from __future__ import annotations

import base64
import json
import re
import uuid
from datetime import UTC, datetime
from typing import Any

from tests.kits.service_double import NOT_FOUND, FakeJob, Order, Reply, ServiceDouble


class FalDouble(ServiceDouble):
    app = "fal-ai/wan/v2.2-a14b/text-to-video"

    def answer(self, method: str, path: str, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        if method == "POST" and path == f"/{self.app}":
            job = self.new_job(body)
            url = f"{self.url}/fal-ai/wan/requests/{job.id}"
            urls = {"response_url": url, "status_url": f"{url}/status", "cancel_url": f"{url}/cancel"}
            return 200, {"request_id": job.id, "status": "IN_QUEUE", "queue_position": 0, **urls}
        found = re.fullmatch(r"/fal-ai/wan/requests/(\w+)(/status|/cancel)?", path)
        job_of = self.jobs.get(found[1]) if found else None
        if found is None or job_of is None:
            return NOT_FOUND
        state = job_of.state
        if found[2] == "/cancel":
            if state in ("completed", "failed", "refused", "cancelled"):
                return 400, {"status": "ALREADY_COMPLETED"}
            job_of.cancel()
            return 202, {"status": "CANCELLATION_REQUESTED"}
        if found[2] == "/status":
            if state == "queued":
                return 200, {"status": "IN_QUEUE", "queue_position": 0}
            if state == "running":
                return 200, {"status": "IN_PROGRESS", "logs": None}
            failed = {"failed": "internal_server_error", "cancelled": "request_cancelled"}.get(state)
            error = {} if failed is None else {"error": "it failed", "error_type": failed}
            return 200, {"status": "COMPLETED", "logs": None, "metrics": {}, **error}
        if state == "refused":
            return 422, {"detail": [{"loc": ["body", "prompt"], "msg": "not allowed", "type": "content_policy"}]}
        return (200, {"video": {"url": self.file_url(job_of)}, "seed": 1}) if state == "completed" else NOT_FOUND


class ReplicateDouble(ServiceDouble):
    def answer(self, method: str, path: str, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        if method == "POST" and re.fullmatch(r"/v1/(models/[\w-]+/[\w.-]+/)?predictions", path):
            return 201, self._shown(self.new_job(body["input"]))
        if method == "GET" and path == "/v1/predictions":
            latest = sorted(self.jobs.values(), key=lambda each: -each.begun_at)[:100]
            return 200, {"results": [self._shown(each) for each in latest], "next": None, "previous": None}
        found = re.fullmatch(r"/v1/predictions/(\w+)(/cancel)?", path)
        job = self.jobs.get(found[1]) if found else None
        if found is None or job is None:
            return NOT_FOUND
        if found[2]:
            job.cancel()
        return 200, self._shown(job)

    def _shown(self, job: FakeJob) -> dict[str, Any]:
        states = {"queued": "starting", "running": "processing", "completed": "succeeded", "cancelled": "canceled"}
        error = {"failed": "CUDA out of memory", "refused": "NSFW content"}.get(job.state)
        return {
            "id": job.id,
            "model": "wan-video/wan-2.2",
            "version": "4eaf2b01",
            "status": "failed" if error else states[job.state],
            "input": job.fields,
            "output": self.file_url(job) if job.state == "completed" else None,
            "error": error,
            "logs": "",
            "created_at": datetime.fromtimestamp(job.begun_at, UTC).isoformat(),
            "urls": {
                "get": f"{self.url}/v1/predictions/{job.id}",
                "cancel": f"{self.url}/v1/predictions/{job.id}/cancel",
            },
        }


class RunwayDouble(ServiceDouble):
    """A task that was deleted is gone; its `credits` come back only where it still waited."""

    def answer(self, method: str, path: str, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        if method == "POST" and path in ("/v1/text_to_video", "/v1/image_to_video"):
            job = self.new_job({**body, "prompt": body["promptText"]})
            return 200, {"id": job.id, "estimatedCost": {"credits": 25}}
        found = re.fullmatch(r"/v1/tasks/(\w+)", path)
        job_of = self.jobs.get(found[1]) if found else None
        if job_of is None:
            return NOT_FOUND
        if method == "DELETE":
            job_of.cancel()
            return 204, None
        return 200, self._shown(job_of)

    def _shown(self, job: FakeJob) -> dict[str, Any]:
        shown: dict[str, Any] = {"id": job.id, "createdAt": datetime.now(UTC).isoformat()}
        if job.state in ("queued", "running"):
            shown |= {"status": "PENDING" if job.state == "queued" else "RUNNING", "estimatedCost": {"credits": 25}}
            return {**shown, "progress": 0.5} if job.state == "running" else shown
        if job.state == "completed":
            return {**shown, "status": "SUCCEEDED", "cost": {"credits": 25}, "output": [self.file_url(job)]}
        if job.state == "cancelled":
            return {**shown, "status": "CANCELLED", "cost": {"credits": 0}}
        code = "SAFETY.INPUT.TEXT" if job.state == "refused" else "INTERNAL.BAD_OUTPUT.CODE01"
        return {**shown, "status": "FAILED", "cost": {"credits": 0}, "failure": "it failed", "failureCode": code}


class GoogleDouble(ServiceDouble):
    """Veo on Google Cloud: long running predictions, the tokens of a service account, and Cloud Storage."""

    model = "veo-3.1-generate-001"

    def is_submission(self, method: str, path: str) -> bool:
        return path.endswith(":predictLongRunning")

    def authorized(self, headers: dict[str, str]) -> bool:
        is_for_a_token = "urlencoded" in headers.get("content-type", "")
        return is_for_a_token or headers.get("x-goog-api-key") == self.key or super().authorized(headers)

    def answer(self, method: str, path: str, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        if path == "/token" and "assertion" in body:
            return 200, {"access_token": self.key, "expires_in": 3600, "token_type": "Bearer"}
        if method == "GET" and path.startswith("/storage/v1/b/bucket/o/"):
            return 200, self.video
        found = re.fullmatch(r"/v1beta1/(.*)publishers/google/models/([\w.-]+):(\w+)", path)
        if method != "POST" or found is None or found[2] != self.model:
            return NOT_FOUND
        place = found[1] or "projects/1234/locations/global/"
        if found[3] == "predictLongRunning":
            (instance,) = body["instances"]
            job = self.new_job({**body["parameters"], **instance})
            return 200, {"name": f"{place}publishers/google/models/{self.model}/operations/{job.id}"}
        job_of = self.jobs.get(str(body.get("operationName")).rpartition("/")[2])
        return NOT_FOUND if job_of is None else (200, {"name": body["operationName"], **self._shown(job_of)})

    def _shown(self, job: FakeJob) -> dict[str, Any]:
        """Nobody can cancel an operation."""
        if job.state in ("queued", "running"):
            return {}
        if job.state == "completed":
            folder = job.fields.get("storageUri")
            content = base64.b64encode(self.video).decode()
            stored = {"bytesBase64Encoded": content} if folder is None else {"gcsUri": f"{folder}/{job.id}.mp4"}
            return {"done": True, "response": {"videos": [{**stored, "mimeType": "video/mp4"}]}}
        code = 3 if job.state == "refused" else 13
        return {"done": True, "error": {"code": code, "message": "it failed"}}


class VideosDouble(ServiceDouble):
    """`/v1/videos`. With `keeps_keys` an Idempotency-Key makes one job."""

    def __init__(self, default: Order | None = None, *, keeps_keys: bool = False) -> None:
        super().__init__(default)
        self._keys: dict[str, FakeJob] | None = {} if keeps_keys else None

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    def answer(self, method: str, path: str, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        if method == "POST" and path == "/v1/videos":
            key = headers.get("idempotency-key")
            if self._keys is None or key is None:
                return 200, self._shown(self.new_job(body))
            if key not in self._keys:
                self._keys[key] = self.new_job(body)
            return 200, self._shown(self._keys[key])
        found = re.fullmatch(r"/v1/videos/(\w+)", path)
        job = self.jobs.get(found[1]) if found else None
        if job is None:
            return NOT_FOUND
        if method == "DELETE":
            job.cancel()
            return 200, {"id": job.id, "object": "video.deleted", "deleted": job.cancelled}
        return 200, self._shown(job)

    def _shown(self, job: FakeJob) -> dict[str, Any]:
        states = {"queued": "queued", "running": "in_progress", "completed": "completed"}
        codes = {"failed": "server_error", "refused": "moderation_blocked", "cancelled": "cancelled"}
        error = {"code": codes[job.state], "message": "it failed"} if job.state in codes else None
        return {
            "id": job.id,
            "object": "video",
            "created_at": int(job.begun_at),
            "model": "wan2.2",
            "progress": 0,
            "seconds": "5",
            "size": "832x480",
            "status": states.get(job.state, "failed"),
            "error": error,
        }


class RunPodDouble(ServiceDouble):
    """An endpoint whose worker keeps a journal: one video for one job_id, whatever the endpoint's own ids are."""

    endpoint_id = "abc123"

    def __init__(self, default: Order | None = None) -> None:
        super().__init__(default)
        self._journal: dict[str, FakeJob] = {}
        self._runs: dict[str, FakeJob] = {}

    @property
    def base_url(self) -> str:
        return f"{self.url}/v2"

    def forget(self) -> None:
        """As RunPod does 30 minutes after the end of a job."""
        self._runs.clear()

    def answer(self, method: str, path: str, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        if method == "POST" and path == f"/v2/{self.endpoint_id}/run":
            job_id = body["input"]["job_id"]
            if job_id not in self._journal:
                self._journal[job_id] = self.new_job(body["input"])
            run_id = uuid.uuid4().hex
            self._runs[run_id] = self._journal[job_id]
            return 200, {"id": run_id, "status": "IN_QUEUE"}
        found = re.fullmatch(rf"/v2/{self.endpoint_id}/(status|cancel)/(\w+)", path)
        job = self._runs.get(found[2]) if found else None
        if found is None or job is None:
            return NOT_FOUND
        if found[1] == "cancel":
            job.cancel()
        return 200, {"id": found[2], **self._shown(job)}

    def _shown(self, job: FakeJob) -> dict[str, Any]:
        states = {"queued": "IN_QUEUE", "running": "IN_PROGRESS", "cancelled": "CANCELLED"}
        if job.state in states:
            return {"status": states[job.state]}
        if job.state == "completed":
            video = {"index": 0, "status": "completed", "video_url": self.file_url(job), "seed": 1, "cost_usd": None}
            return {"status": "COMPLETED", "output": {"status": "completed", "videos": [video]}}
        code, retryable = ("input_blocked", False) if job.state == "refused" else ("internal", True)
        error = {"code": code, "message": "it failed", "path": None, "retryable": retryable}
        return {"status": "FAILED", "error": json.dumps(error)}
