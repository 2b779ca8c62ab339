"""What clients of any language are held to: how a job may end, and webhooks that are genuine or forged."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from standardwebhooks import Webhook

from tests.kits.endpoint_double import State, completed, failed
from videogen_client import JobRefused, VideoFailed
from worker.base.errors import InputFailed, InvalidRequest
from worker.jobs import answers

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
TRAINING = {"job_id": "a", "status": "completed", "dataset": {"clips": 12}, "loras": [], "timings": {"total": 5.0}}
BROKEN = answers.video_failure("a", 0, InputFailed("the server answered 404", path="reference_image_url"))

REFUSED = answers.refused_answer("a", InvalidRequest("is wrong", path="fps"), {})
SEVERAL = {**REFUSED, "problems": [{"path": "fps", "message": "is wrong"}, {"path": "seed", "message": "is wrong"}]}
ENDS: dict[str, tuple[State, type[VideoFailed], dict[str, Any]]] = {
    "the worker's error": (
        failed(json.dumps(BROKEN["error"])),
        VideoFailed,
        {"code": "input_failed", "path": "reference_image_url", "retryable": True},
    ),
    "a refusal": (failed(REFUSED["error"]), JobRefused, {"code": "invalid_request", "path": "fps", "retryable": False}),
    "several problems": (
        failed(SEVERAL["error"], SEVERAL),
        JobRefused,
        {"code": "invalid_request", "problems": SEVERAL["problems"]},
    ),
    "one of several videos": (
        completed(answers.job_answer("a", [{**BROKEN, "problems": SEVERAL["problems"]}], {})),
        VideoFailed,
        {"code": "input_failed", "problems": SEVERAL["problems"]},
    ),
    "a text": (
        failed("the worker died"),
        VideoFailed,
        {"code": "internal", "message": "the job failed: the worker died"},
    ),
    "of the SDK": (
        failed(json.dumps({"error_type": "x", "error_message": "no GPU", "error_traceback": "secret"})),
        VideoFailed,
        {"code": "internal", "message": "no GPU", "retryable": True},
    ),
    "cancelled": ({"status": "CANCELLED"}, VideoFailed, {"code": "cancelled", "retryable": True}),
    "RunPod's own timeout": ({"status": "TIMED_OUT"}, VideoFailed, {"code": "timeout", "retryable": True}),
}


def signed(body: bytes, secret: str = SECRET) -> dict[str, str]:
    now = datetime.now(UTC)
    return {
        "Webhook-Id": "evt_1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign("evt_1", now, body.decode()),
    }


BODY = b'{"type": "progress", "job_id": "a"}'
OTHER = "whsec_plJ3nmyCDGBKInavdOK15jsl01234567"

FORGED: dict[str, tuple[bytes, dict[str, str], str]] = {
    "no headers": (BODY, {}, SECRET),
    "another secret": (BODY, signed(BODY), OTHER),
    "another body": (b'{"type": "failed"}', signed(BODY), SECRET),
    "old": (BODY, {**signed(BODY), "webhook-timestamp": "1600000000"}, SECRET),
    "no text": (b"\xff", signed(BODY), SECRET),
    "a broken signature": (BODY, {**signed(BODY), "webhook-signature": "v1"}, SECRET),
    "no secret": (BODY, signed(BODY), " "),
    "a secret that is none": (BODY, signed(BODY), "whsec_ä"),
}
