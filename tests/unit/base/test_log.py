"""What a record looks like: its job id, its layout, and figures beside the message."""

from __future__ import annotations

import asyncio
import io
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest

from tests.kits.logs import entries
from worker.base import log

LOGGER = logging.getLogger("worker.test")
Begin = Callable[..., io.StringIO]


# --- the job id


def test_every_record_inside_carries_the_job_id(begin: Begin) -> None:
    stream = begin(layout="json")
    LOGGER.info("before")
    with log.job_scope("job-1"):
        LOGGER.info("inside")
        logging.getLogger("somebody.else").warning("a library's")
    LOGGER.info("after")
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
        LOGGER.info("task of %s", job_id)
        await asyncio.to_thread(LOGGER.info, "thread of %s", job_id)

    async def both() -> None:
        await asyncio.gather(one("job-1"), one("job-2"))

    asyncio.run(both())
    found = entries(stream)
    assert len(found) == 12
    assert all(entry["message"].endswith(f" of {entry['job_id']}") for entry in found)


def test_the_job_id_follows_a_copied_context_into_an_executor(begin: Begin) -> None:
    stream = begin(layout="json")
    with ThreadPoolExecutor(1) as pool, log.job_scope("job-1"):
        pool.submit(copy_context().run, LOGGER.info, "with").result()
        pool.submit(LOGGER.info, "without").result()
    assert [entry.get("job_id") for entry in entries(stream)] == ["job-1", None]


def test_a_thread_without_the_context_has_no_job(begin: Begin) -> None:
    stream = begin(layout="json")
    with log.job_scope("job-1"):
        thread = threading.Thread(target=LOGGER.info, args=("alone",))
        thread.start()
        thread.join()
    assert "job_id" not in entries(stream)[0]


def test_the_text_layout_names_the_job(begin: Begin) -> None:
    stream = begin()
    with log.job_scope("job-1"):
        LOGGER.info("stored %d bytes", 12)
    LOGGER.info("idle")
    first, second = stream.getvalue().splitlines()
    assert first.endswith("Z INFO    stored 12 bytes  job=job-1")
    assert second.endswith("Z INFO    idle")


# --- the layouts


def test_json_is_one_line_a_record(begin: Begin) -> None:
    stream = begin(layout="json")
    LOGGER.info('two\nlines, "quotes", \\ and 猫')
    try:
        raise ValueError("over\ntwo lines")
    except ValueError:
        LOGGER.exception("failed")
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
        LOGGER.error("failed", exc_info=ValueError("why"))
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
    LOGGER.info("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1


# --- figures beside the message


def test_figures_stand_beside_the_message_in_json_and_not_in_text(begin: Begin) -> None:
    figures = log.fields(stage="generate", seconds=1.5, video=0, cost_usd=None)
    stream = begin(layout="json")
    LOGGER.info("video 0: generate took 1.5 s", extra=figures)
    (entry,) = entries(stream)
    assert {name: entry[name] for name in ("stage", "seconds", "video")} == {
        "stage": "generate",
        "seconds": 1.5,
        "video": 0,
    }
    assert "cost_usd" not in entry
    stream = begin()
    LOGGER.info("took 1.5 s", extra=figures)
    assert stream.getvalue().endswith("INFO    took 1.5 s\n")


def test_a_field_never_takes_the_place_of_the_records_own(begin: Begin) -> None:
    stream = begin(layout="json")
    with log.job_scope("job-1"):
        LOGGER.info("x", extra=log.fields(level="none", message="other", job_id="job-2", time=0))
    (entry,) = entries(stream)
    assert (entry["level"], entry["message"], entry["job_id"]) == ("INFO", "x", "job-1")
    assert entry["time"].endswith("Z")
