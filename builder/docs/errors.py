"""docs/errors.md: every code with its webhook code, whether a retry can help, its meaning and its remedy."""

from __future__ import annotations

from collections.abc import Mapping

from builder.docs.markdown import page, table
from worker.base import errors as tree
from worker.base.errors import WorkerError

_DO: Mapping[str, str] = {
    "invalid_request": "Correct the fields that the message names; all problems are reported at once.",
    "unsupported": "Use another mode, model or preset; the message says what this worker serves.",
    "input_blocked": "Use a public http(s) address; for a private network set `PRIVATE_URL_ALLOWLIST`.",
    "input_failed": "Check that the URL opens from outside, in time and below the size limit; then send the job again. "
    "What the server refuses (4xx but 408, 425, 429) is not retryable.",
    "input_invalid": "Send a file of a format that the message names.",
    "cancelled": "Send the job again, if it was not you who stopped it.",
    "internal": "Send the job again; if it fails again, look up the job id in the worker's log.",
    "encode_failed": "Send the job again; the worker's log says what ffmpeg said.",
    "upload_failed": "Check the storage variable that the message names, or sign `upload_url` again; then resend.",
    "model_unavailable": "Check the model id, `HF_TOKEN`, the volume's quota and the worker's log.",
    "timeout": "Ask for fewer, shorter or smaller videos, or raise `JOB_TIMEOUT_S`.",
    "out_of_memory": "Ask for fewer frames or a smaller size, or use a larger GPU.",
}
_INTRODUCTION = """
A failure is reported in three places, each time with the same object: in the video's entry of the answer; in the
`failed` webhook; and, where no video was delivered, as a JSON string in the answer's `error`, which makes RunPod mark
the job as FAILED.

```json error
{
  "code": "invalid_request",
  "message": "job_request_params[0].fps: must be 1 to 60, not 61",
  "path": "job_request_params[0].fps",
  "retryable": false
}
```

Where a payload has several problems, `message` has them all, and `problems` beside `error` lists each with its
`path` and `message`.

`path` names the field, or is null where no single field is at fault. `retryable` says whether the same request may
succeed later. Messages hold no host name, local path, secret or traceback; the worker's log has the rest, under the
job id.
"""


def classes() -> list[type[WorkerError]]:
    """Every error that a caller can receive, in the order of the module."""
    return [kind for kind in vars(tree).values() if isinstance(kind, type) and WorkerError in kind.__bases__]


def render() -> str:
    rows = [
        (f"`{kind.code}`", str(kind.http_code), "yes" if kind.retryable else "no", _when(kind), _DO.get(kind.code, ""))
        for kind in classes()
    ]
    return page(
        "worker/base/errors.py",
        "# Errors",
        _INTRODUCTION,
        table(("Code", "Webhook `code`", "Retryable", "When", "What to do"), rows),
        "A failing video does not stop the others of its job: the answer's `status` is then `partial`.",
    )


def _when(kind: type[WorkerError]) -> str:
    """The first line of the class's docstring."""
    return (kind.__doc__ or "").splitlines()[0].removesuffix(".")
