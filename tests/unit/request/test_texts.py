"""What is a job id, and what a URL."""

from __future__ import annotations

import pytest

from worker.request import texts


@pytest.mark.parametrize("value", ["a", "A" * 128, "a.b", "0", "-._"])
def test_is_job_id(value: str) -> None:
    assert texts.is_job_id(value)


@pytest.mark.parametrize("value", ["", ".", "..", "a..b", "A" * 129, "a b", "é", "a\n", "\ud800", None, 1, b"a"])
def test_is_no_job_id(value: object) -> None:
    assert not texts.is_job_id(value)


@pytest.mark.parametrize("value", ["https://a", "http://a/b?c#d", "data:image/png;base64,AA==", "data:;base64, AA\nAA"])
def test_is_url(value: str) -> None:
    assert texts.is_url(value)


@pytest.mark.parametrize(
    "value", ["", "a", "://a", "https:", "https://a b", " https://a", "https://a\n", "https://\ud800", None, 1]
)
def test_is_no_url(value: object) -> None:
    assert not texts.is_url(value)
