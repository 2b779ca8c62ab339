"""What a record looks like, and what never gets into one."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, Literal

import pytest

from worker.base import log

Layout = Literal["text", "json"]
LAYOUTS: list[Layout] = ["text", "json"]
SIGNED = "https://bucket.example.com/videos/0.mp4?X-Amz-Signature=abc123&X-Amz-Expires=60"


@pytest.fixture(autouse=True)
def root_as_before() -> Iterator[None]:
    root = logging.getLogger()
    names = (None, "worker", "handler")
    handlers, levels = list(root.handlers), {name: logging.getLogger(name).level for name in names}
    yield
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


Begin = Callable[..., io.StringIO]


@pytest.fixture
def begin() -> Begin:
    """Configures the log to write to a stream that is handed back."""

    def configure(**options: Any) -> io.StringIO:
        stream = io.StringIO()
        log.configure(stream=stream, **options)
        return stream

    return configure


def logger() -> logging.Logger:
    return logging.getLogger("worker.test")


def entries(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().split("\n") if line]


# --- the job id


def test_every_record_inside_carries_the_job_id(begin: Begin) -> None:
    stream = begin(layout="json")
    logger().info("before")
    with log.job_scope("job-1"):
        logger().info("inside")
        logging.getLogger("somebody.else").warning("a library's")
    logger().info("after")
    assert [entry.get("job_id") for entry in entries(stream)] == [None, "job-1", "job-1", None]
    assert log.current_job_id() is None


def test_scopes_nest_and_end_with_an_exception(begin: Begin) -> None:
    with log.job_scope("outer"):
        with pytest.raises(KeyError), log.job_scope("inner"):
            raise KeyError(log.current_job_id())
        assert log.current_job_id() == "outer"
    assert log.current_job_id() is None


def test_the_job_id_follows_into_tasks_and_to_thread(begin: Begin) -> None:
    stream = begin(layout="json")

    async def one(job_id: str) -> None:
        with log.job_scope(job_id):
            await asyncio.gather(*(asyncio.create_task(child(job_id)) for _ in range(3)))

    async def child(job_id: str) -> None:
        await asyncio.sleep(0)
        logger().info("task of %s", job_id)
        await asyncio.to_thread(logger().info, "thread of %s", job_id)

    async def both() -> None:
        await asyncio.gather(one("job-1"), one("job-2"))

    asyncio.run(both())
    found = entries(stream)
    assert len(found) == 12
    assert all(entry["message"].endswith(f" of {entry['job_id']}") for entry in found)


def test_the_job_id_follows_a_copied_context_into_an_executor(begin: Begin) -> None:
    stream = begin(layout="json")
    with ThreadPoolExecutor(1) as pool, log.job_scope("job-1"):
        pool.submit(copy_context().run, logger().info, "with").result()
        pool.submit(logger().info, "without").result()
    assert [entry.get("job_id") for entry in entries(stream)] == ["job-1", None]


def test_a_thread_without_the_context_has_no_job(begin: Begin) -> None:
    stream = begin(layout="json")
    with log.job_scope("job-1"):
        thread = threading.Thread(target=logger().info, args=("alone",))
        thread.start()
        thread.join()
    assert "job_id" not in entries(stream)[0]


def test_the_text_layout_names_the_job(begin: Begin) -> None:
    stream = begin()
    with log.job_scope("job-1"):
        logger().info("stored %d bytes", 12)
    logger().info("idle")
    first, second = stream.getvalue().splitlines()
    assert first.endswith("Z INFO    stored 12 bytes  job=job-1")
    assert second.endswith("Z INFO    idle")


# --- the layouts


def test_json_is_one_line_a_record(begin: Begin) -> None:
    stream = begin(layout="json")
    logger().info('two\nlines, "quotes", \\ and 猫')
    try:
        raise ValueError("over\ntwo lines")
    except ValueError:
        logger().exception("failed")
    assert stream.getvalue().count("\n") == 2
    first, second = entries(stream)
    assert first["message"] == 'two\nlines, "quotes", \\ and 猫'
    assert (first["level"], first["logger"]) == ("INFO", "worker.test")
    assert first["time"].endswith("Z")
    assert second["level"] == "ERROR"
    assert "ValueError: over\ntwo lines" in second["exception"]


def test_text_holds_the_traceback(begin: Begin) -> None:
    stream = begin()
    with log.job_scope("job-1"):
        logger().error("failed", exc_info=ValueError("why"))
    assert "ValueError: why" in stream.getvalue()


@pytest.mark.parametrize(("level", "seen"), [("DEBUG", 4), ("INFO", 3), ("WARNING", 2), ("ERROR", 1)])
def test_levels_hold_for_our_own_records(begin: Begin, level: str, seen: int) -> None:
    stream = begin(level=level)
    for name in ("worker.test", "handler"):
        for rank in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            logging.getLogger(name).log(rank, "x")
    assert len(stream.getvalue().splitlines()) == 2 * seen


def test_libraries_are_heard_from_warnings_on(begin: Begin) -> None:
    stream = begin(level="DEBUG")
    for rank in (logging.DEBUG, logging.INFO, logging.WARNING):
        logging.getLogger("botocore.test").log(rank, "x")
    assert len(stream.getvalue().splitlines()) == 1


def test_configuring_again_takes_the_place_of_every_handler(begin: Begin) -> None:
    first = begin()
    logging.getLogger().addHandler(logging.StreamHandler(first))
    second = begin()
    logger().info("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1


# --- what is hidden


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("secret", ["hf_abcdef", 'with"quote', "with\\slash", "with\nbreak", "geheim-ü", "a+b/c=="])
def test_secrets_are_replaced_in_messages_arguments_and_exceptions(begin: Begin, layout: Layout, secret: str) -> None:
    stream = begin(layout=layout, secrets=[secret])
    logger().info(f"in the message {secret}")
    logger().info("in an argument %s", secret)
    try:
        raise ValueError(f"in an exception {secret}")
    except ValueError:
        logger().exception("failed with %s", secret)
    text = stream.getvalue()
    assert secret not in text
    assert json.dumps(secret)[1:-1] not in text
    assert json.dumps(secret, ensure_ascii=False)[1:-1] not in text
    assert text.count("[hidden]") == 4
    if layout == "json":
        assert len(entries(stream)) == 3


def test_a_secret_within_a_longer_one_leaves_nothing_of_either(begin: Begin) -> None:
    stream = begin(secrets=["abcd", "abcd-efgh"])
    logger().info("abcd-efgh and abcd")
    assert stream.getvalue().rstrip().endswith("[hidden] and [hidden]")


def test_words_too_short_for_a_secret_stay(begin: Begin) -> None:
    stream = begin(secrets=["", "abc"])
    logger().info("abcdef")
    assert "abcdef" in stream.getvalue()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("text", ["{}", "at {}", "'{}'", '"{}"', "{}\nnext", "({}) x"])
def test_the_query_of_a_url_is_hidden(begin: Begin, layout: Layout, text: str) -> None:
    stream = begin(layout=layout)
    logger().info(text.format(SIGNED))
    shown = stream.getvalue()
    assert "https://bucket.example.com/videos/0.mp4?[hidden]" in shown
    assert "abc123" not in shown
    assert "Expires" not in shown
    if layout == "json":
        (entry,) = entries(stream)
        assert entry["message"].startswith(text.partition("{}")[0])


def test_the_scheme_of_a_url_may_be_in_capitals(begin: Begin) -> None:
    stream = begin()
    logger().info("HTTPS://bucket.example.com/a?token=abc123")
    assert "abc123" not in stream.getvalue()


def test_a_url_without_query_stays(begin: Begin) -> None:
    stream = begin()
    logger().info("at https://example.com/a.mp4#t=1, why?")
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
    logger().info('got "%s" here', uri)
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
        logger().exception("failed")
    shown = stream.getvalue()
    assert "RuntimeError" in shown
    assert "OSError" in shown
    assert not [hidden for hidden in ("abc123", "hf_abcdef", "iVBOR") if hidden in shown]


# --- fingerprints


def test_fingerprints_tell_prompts_apart_and_do_not_show_them() -> None:
    assert log.fingerprint("a cat") == log.fingerprint("a cat")
    assert log.fingerprint("a cat") != log.fingerprint("a dog")
    assert len(log.fingerprint("a cat" * 1000)) == 8
    assert int(log.fingerprint("a cat"), 16) >= 0
    assert len(log.fingerprint("\ud800")) == 8


# --- figures beside the message


def test_figures_stand_beside_the_message_in_json_and_not_in_text(begin: Begin) -> None:
    figures = log.fields(stage="generate", seconds=1.5, video=0, cost_usd=None)
    stream = begin(layout="json")
    logger().info("video 0: generate took 1.5 s", extra=figures)
    (entry,) = entries(stream)
    assert {name: entry[name] for name in ("stage", "seconds", "video")} == {
        "stage": "generate",
        "seconds": 1.5,
        "video": 0,
    }
    assert "cost_usd" not in entry
    stream = begin()
    logger().info("took 1.5 s", extra=figures)
    assert stream.getvalue().endswith("INFO    took 1.5 s\n")


def test_a_field_never_takes_the_place_of_the_records_own(begin: Begin) -> None:
    stream = begin(layout="json")
    with log.job_scope("job-1"):
        logger().info("x", extra=log.fields(level="none", message="other", job_id="job-2", time=0))
    (entry,) = entries(stream)
    assert (entry["level"], entry["message"], entry["job_id"]) == ("INFO", "x", "job-1")
    assert entry["time"].endswith("Z")


def test_texts_in_fields_are_redacted_and_what_is_no_json_is_written_all_the_same(begin: Begin) -> None:
    stream = begin(layout="json", secrets=["hf_abcdef"])
    inner = {"token": "hf_abcdef", "seconds": 1.0}
    logger().info("x", extra=log.fields(url=SIGNED, token="my hf_abcdef", inner=inner, odd={1}))
    (entry,) = entries(stream)
    assert "abc123" not in stream.getvalue()
    assert "hf_abcdef" not in stream.getvalue()
    assert entry["inner"] == {"token": "[hidden]", "seconds": 1.0}
    assert entry["odd"] == "{1}"


def test_a_scope_inside_another_hides_the_texts_of_both(begin: Begin) -> None:
    stream = begin()
    with log.job_scope("job-1", private=["a heron in the reeds"]), log.job_scope("job-2", private=["a boat at dawn"]):
        logger().info("a heron in the reeds, a boat at dawn")
    assert stream.getvalue().endswith("[hidden], [hidden]  job=job-2\n")
