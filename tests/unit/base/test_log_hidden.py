"""What never gets into a record: secrets, queries of URLs, data URIs and prompts."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from typing import Literal

import pytest

from tests.kits.logs import entries
from worker.base import log

Layout = Literal["text", "json"]
LAYOUTS: list[Layout] = ["text", "json"]
LOGGER = logging.getLogger("worker.test")
SIGNED = "https://bucket.example.com/videos/0.mp4?X-Amz-Signature=abc123&X-Amz-Expires=60"
Begin = Callable[..., io.StringIO]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("secret", ["hf_abcdef", 'with"quote', "with\\slash", "with\nbreak", "geheim-ü", "a+b/c=="])
def test_secrets_are_replaced_in_messages_arguments_and_exceptions(begin: Begin, layout: Layout, secret: str) -> None:
    stream = begin(layout=layout, secrets=[secret])
    LOGGER.info(f"in the message {secret}")
    LOGGER.info("in an argument %s", secret)
    try:
        raise ValueError(f"in an exception {secret}")
    except ValueError:
        LOGGER.exception("failed with %s", secret)
    text = stream.getvalue()
    assert secret not in text
    assert json.dumps(secret)[1:-1] not in text
    assert json.dumps(secret, ensure_ascii=False)[1:-1] not in text
    assert text.count("[hidden]") == 4
    if layout == "json":
        assert len(entries(stream)) == 3


def test_a_secret_within_a_longer_one_leaves_nothing_of_either(begin: Begin) -> None:
    stream = begin(secrets=["abcd", "abcd-efgh"])
    LOGGER.info("abcd-efgh and abcd")
    assert stream.getvalue().rstrip().endswith("[hidden] and [hidden]")


def test_words_too_short_for_a_secret_stay(begin: Begin) -> None:
    stream = begin(secrets=["", "abc"])
    LOGGER.info("abcdef")
    assert "abcdef" in stream.getvalue()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("text", ["{}", "at {}", "'{}'", '"{}"', "{}\nnext", "({}) x"])
def test_the_query_of_a_url_is_hidden(begin: Begin, layout: Layout, text: str) -> None:
    stream = begin(layout=layout)
    LOGGER.info(text.format(SIGNED))
    shown = stream.getvalue()
    assert "https://bucket.example.com/videos/0.mp4?[hidden]" in shown
    assert "abc123" not in shown
    assert "Expires" not in shown
    if layout == "json":
        (entry,) = entries(stream)
        assert entry["message"].startswith(text.partition("{}")[0])


def test_the_scheme_of_a_url_may_be_in_capitals(begin: Begin) -> None:
    stream = begin()
    LOGGER.info("HTTPS://bucket.example.com/a?token=abc123")
    assert "abc123" not in stream.getvalue()


def test_a_url_without_query_stays(begin: Begin) -> None:
    stream = begin()
    LOGGER.info("at https://example.com/a.mp4#t=1, why?")
    assert "https://example.com/a.mp4#t=1, why?" in stream.getvalue()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "uri",
    [
        "data:image/png;base64,iVBORw0KGgo=",
        "data:image/svg+xml;charset=utf-8;base64,iVBORw0KGgo=",
        "DATA:IMAGE/PNG;BASE64,iVBORw0KGgo=",
        "data:image/jpeg;base64,iVBORw0KGgo%3D-_",
        "data:image/png,iVBORw0KGgo",
        "data:;base64,iVBORw0KGgo=",
        "data:,iVBORw0KGgo%3D",
        "data:application/octet-stream;name=a.png;base64, iVBORw0KGgo=",
        "data:image/png;base64,AAAAAAAAAAAAAAAAAAAAAAAA\niVBORw0KGgoAAAAAAAAAAAAA==",
    ],
)
def test_the_content_of_a_data_uri_is_hidden(begin: Begin, layout: Layout, uri: str) -> None:
    stream = begin(layout=layout)
    LOGGER.info('got "%s" here', uri)
    shown = stream.getvalue()
    assert "iVBOR" not in shown
    assert "%3D" not in shown
    assert "[hidden]" in shown
    assert "here" in shown


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exceptions_are_redacted_too(begin: Begin, layout: Layout) -> None:
    stream = begin(layout=layout, secrets=["hf_abcdef"])
    try:
        try:
            raise OSError(f"GET {SIGNED} failed")
        except OSError as failure:
            raise RuntimeError("token hf_abcdef, data:image/png;base64,iVBORw0KGgo=") from failure
    except RuntimeError:
        LOGGER.exception("failed")
    shown = stream.getvalue()
    assert "RuntimeError" in shown
    assert "OSError" in shown
    assert not [hidden for hidden in ("abc123", "hf_abcdef", "iVBOR") if hidden in shown]


def test_fingerprints_tell_prompts_apart_and_do_not_show_them() -> None:
    assert log.fingerprint("a cat") == log.fingerprint("a cat")
    assert log.fingerprint("a cat") != log.fingerprint("a dog")
    assert len(log.fingerprint("a cat" * 1000)) == 8
    assert int(log.fingerprint("a cat"), 16) >= 0
    assert len(log.fingerprint("\ud800")) == 8


def test_texts_in_fields_are_redacted_and_what_is_no_json_is_written_all_the_same(begin: Begin) -> None:
    stream = begin(layout="json", secrets=["hf_abcdef"])
    inner = {"token": "hf_abcdef", "seconds": 1.0}
    LOGGER.info("x", extra=log.fields(url=SIGNED, token="my hf_abcdef", inner=inner, odd={1}))
    (entry,) = entries(stream)
    assert "abc123" not in stream.getvalue()
    assert "hf_abcdef" not in stream.getvalue()
    assert entry["inner"] == {"token": "[hidden]", "seconds": 1.0}
    assert entry["odd"] == "{1}"


def test_a_scope_inside_another_hides_the_texts_of_both(begin: Begin) -> None:
    stream = begin()
    with log.job_scope("job-1", private=["a heron in the reeds"]), log.job_scope("job-2", private=["a boat at dawn"]):
        LOGGER.info("a heron in the reeds, a boat at dawn")
    assert stream.getvalue().endswith("[hidden], [hidden]  job=job-2\n")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_private_text_is_hidden_as_errors_and_json_write_it(begin: Begin, layout: Layout) -> None:
    """A library's error may quote what it was given: KeyError does."""
    prompt = "a heron says \"no\"\nand it's gone, à l'aube"
    stream = begin(layout=layout)
    with log.job_scope("job-1", private=[prompt]):
        LOGGER.info("%s %s %r %a", KeyError(prompt), json.dumps({"prompt": prompt}), {"prompt": prompt}, prompt)
    assert "heron" not in stream.getvalue()
    assert "aube" not in stream.getvalue()
