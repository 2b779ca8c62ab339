"""Logging: the job id in every record, text for people or a line of JSON; secrets and prompts never.

Call `configure` once, at start. `job_scope` binds the id for everything that runs inside it, tasks included.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, TextIO

_private: ContextVar[tuple[str, ...]] = ContextVar("private", default=())
_job_id: ContextVar[str | None] = ContextVar("job_id", default=None)

# The query of a URL may be a signature (S3 presigned URLs, CDN tokens): it is never logged.
_URL_QUERY = re.compile(r"(https?://[^\s?#'\"]+)\?[^\s'\"]+", re.IGNORECASE)
# With base64 in lines, as they may be sent.
_DATA_URI = re.compile(
    r"(data:(?:[a-z]+/[a-z0-9.+-]+)?(?:;[^\s,'\"]*)?,)\s?[^\s'\"]+(?:\s+[a-z0-9+/_-]{20,}={0,2})*", re.IGNORECASE
)
_HIDDEN = "[hidden]"


def current_job_id() -> str | None:
    return _job_id.get()


@contextmanager
def job_scope(job_id: str, private: Iterable[str] = ()) -> Iterator[None]:
    """Every record logged inside carries `job_id`, and none the texts in `private` (8 characters or more).

    Inside another scope the private texts of both are kept out.
    """
    hidden = (*_private.get(), *(form for text in private if len(text) >= 8 for form in _written(text)))
    tokens = _job_id.set(job_id), _private.set(hidden)
    try:
        yield
    finally:
        _job_id.reset(tokens[0])
        _private.reset(tokens[1])


def _written(text: str) -> set[str]:
    """`text` as it is, as Python's errors quote it, and as JSON writes it: with escapes."""
    quoted = (repr(text), ascii(text), json.dumps(text), json.dumps(text, ensure_ascii=False))
    return {text, *(each[1:-1] for each in quoted)}


def fields(**values: object) -> dict[str, dict[str, object]]:
    """The `extra` of a record whose figures stand beside the message in JSON: `log.info(..., extra=fields(seconds=1))`.

    None is left out. Texts are redacted as messages are; a field never replaces one of the record's own.
    """
    return {"fields": {name: value for name, value in values.items() if value is not None}}


def fingerprint(text: str) -> str:
    """Eight hex digits that stand for a prompt in the log: the same for equal prompts, and no prompt can be read."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8]


class _Redactor:
    """Removes secrets, URL queries and data URIs from text."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = sorted({secret for secret in secrets if len(secret) >= 4}, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for secret in (*self._secrets, *_private.get()):
            text = text.replace(secret, _HIDDEN)
        return _DATA_URI.sub(rf"\1{_HIDDEN}", _URL_QUERY.sub(rf"\1?{_HIDDEN}", text))


class _Formatter(logging.Formatter):
    def __init__(self, layout: Literal["text", "json"], redact: _Redactor) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        self.converter = time.gmtime
        self._layout = layout
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        job_id = current_job_id()
        if self._layout == "text":
            line = super().format(record)
            return self._redact(f"{line}  job={job_id}" if job_id else line)
        entry: dict[str, object] = {
            "time": self.formatTime(record, self.datefmt),
            "level": record.levelname,
            "logger": record.name,
            "message": self._redact(record.getMessage()),
        }
        if job_id:
            entry["job_id"] = job_id
        if record.exc_info:
            entry["exception"] = self._redact(self.formatException(record.exc_info))
        figures: Mapping[str, object] = getattr(record, "fields", {})
        entry.update({name: self._clean(value) for name, value in figures.items() if name not in entry})
        # Redacted before: in JSON a secret may be escaped, and a cut could fall into an escape.
        return json.dumps(entry, ensure_ascii=False, default=str)

    def _clean(self, value: object) -> object:
        if isinstance(value, Mapping):
            return {str(name): self._clean(inner) for name, inner in value.items()}
        return self._redact(value) if isinstance(value, str) else value


def configure(
    *,
    level: str = "INFO",
    layout: Literal["text", "json"] = "text",
    secrets: Iterable[str] = (),
    stream: TextIO | None = None,
) -> None:
    """Send every record of the process to `stream` (standard error by default) in one format.

    Replaces the root logger's handlers: one that a library installed on import would print each record twice.
    `secrets` are values that are replaced wherever they would appear.
    """
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(_Formatter(layout, _Redactor(secrets)))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("worker").setLevel(level)
    logging.getLogger("handler").setLevel(level)
