"""The kinds of text that a payload holds: words, prompts, URLs, job ids, and what makes each of them valid."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, Field

MAX_PROMPT_CHARACTERS = 4000
JOB_ID_PATTERN = r"^[A-Za-z0-9._-]{1,128}$"
# Base64 in a data URI may be wrapped.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:\S+|(?i:data):\S*,(?s:.)+")
_JOB_ID = re.compile(JOB_ID_PATTERN)


def _text(value: str) -> str:
    # A lone surrogate passes JSON and pydantic, and then no log, webhook or storage call can encode it.
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("must be a string of valid Unicode") from None
    return value


def _url(value: str) -> str:
    if not _URL.fullmatch(value):
        raise ValueError("must be a URL such as https://example.com/name")
    return value


def _job_id(value: str) -> str:
    if not _JOB_ID.fullmatch(value) or ".." in value or value == ".":
        raise ValueError("must be 1 to 128 of A-Z a-z 0-9 . _ - and neither '.' nor hold '..'")
    return value


def _trimmed(value: str) -> str:
    value = value.strip()
    if len(value) > MAX_PROMPT_CHARACTERS:
        raise ValueError(f"must be at most {MAX_PROMPT_CHARACTERS} characters after trimming, got {len(value)}")
    return value


def _prompt(value: str) -> str:
    value = value.strip()
    if not 1 <= len(value) <= MAX_PROMPT_CHARACTERS:
        raise ValueError(f"must be 1 to {MAX_PROMPT_CHARACTERS} characters after trimming, got {len(value)}")
    return value


Text = Annotated[str, AfterValidator(_text)]
Trimmed = Annotated[str, AfterValidator(_text), AfterValidator(_trimmed)]
Prompt = Annotated[str, AfterValidator(_text), AfterValidator(_prompt)]
Url = Annotated[str, AfterValidator(_text), AfterValidator(_url)]
JobId = Annotated[str, AfterValidator(_job_id)]
Source = Annotated[Text, Field(min_length=1, max_length=2048)]


def is_job_id(value: object) -> bool:
    return isinstance(value, str) and _accepts(_job_id, value)


def is_url(value: object) -> bool:
    return isinstance(value, str) and _accepts(_url, value) and _accepts(_text, value)


def _accepts(check: Callable[[str], str], value: str) -> bool:
    try:
        check(value)
    except ValueError:
        return False
    return True
