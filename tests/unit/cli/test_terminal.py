"""What a local run shows: a bar where there is a terminal, and a summary of the answer."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from typing import Any

import pytest

import handler
from tests.kits.logs import logging_as_it_was
from worker.base import settings
from worker.base.errors import InvalidRequest, JobTimeout
from worker.cli import terminal
from worker.delivery.webhooks.progress_sender import ProgressEvent
from worker.jobs import answers

VIDEO: dict[str, Any] = {
    "index": 0,
    "status": "completed",
    "job_id": "j-1",
    "video_url": "file:///outputs/videos/0.mp4",
    "thumbnail_url": "file:///outputs/videos/0.jpg",
    "duration_seconds": 5.0625,
    "num_frames": 81,
    "resolution": "832x480",
    "fps": 16,
    "seed": 0,
    "prompt": "a cat, 猫",
    "model_version": "demo",
    "mode": "text_to_video",
    "warnings": ["num_frames: 82 lowered to 81"],
    "size_bytes": 1_234_567,
    "timings": {"generate": 1.234, "total": 2.0},
    "gpu": "cpu",
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def events() -> list[ProgressEvent]:
    return [ProgressEvent(0, "queued", 0), ProgressEvent(42, "generating", 0), ProgressEvent(100, "uploading", 0)]


def test_a_terminal_sees_the_stage_and_the_percentage(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with terminal.Bar() as bar:
        for event in events():
            bar(event)
            bar._bar.refresh()
    text = screen.getvalue()
    assert "generating   42%" in text
    assert "uploading   100%" in text


def test_nothing_is_drawn_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    with terminal.Bar() as bar:
        for event in events():
            bar(event)
    assert pipe.getvalue() == ""


def test_the_bar_ends_with_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())

    def interrupted() -> None:
        with terminal.Bar() as bar:
            bar(events()[1])
            raise KeyError("stop")

    with pytest.raises(KeyError):
        interrupted()


def shown(answer: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    terminal.summarise(answer)
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_a_delivered_video_is_summed_up(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(answers.job_answer("j-1", [VIDEO], {"total": 2.25}), capsys)
    assert text.splitlines()[0] == "job j-1: completed in 2.2 s"
    for part in (
        "file:///outputs/videos/0.mp4",
        "file:///outputs/videos/0.jpg",
        "832x480, 81 frames at 16 fps (5.06 s), 1.23 MB",
        "demo, text_to_video, seed 0, on cpu",
        "a cat, 猫",
        "generate 1.2 s, total 2.0 s",
        "num_frames: 82 lowered to 81",
    ):
        assert part in text


def test_a_video_without_poster_has_no_line_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(answers.job_answer("j-1", [{**VIDEO, "thumbnail_url": None}], {"total": 2.0}), capsys)
    assert "poster" not in text
    assert "None" not in text


def test_a_failed_video_beside_a_good_one(capsys: pytest.CaptureFixture[str]) -> None:
    failure = answers.video_failure("j-1", 1, JobTimeout("took too long"))
    text = shown(answers.job_answer("j-1", [VIDEO, failure], {"total": 2.0}), capsys)
    assert "job j-1: partial" in text
    assert "video 1 failed: timeout: took too long" in text


def test_a_refused_job(capsys: pytest.CaptureFixture[str]) -> None:
    answer = answers.refused_answer("j-1", InvalidRequest("is missing", path="prompt"), {"total": 0.01})
    text = shown(answer, capsys)
    assert text == "job j-1: failed in 0.0 s\n  job failed: invalid_request: prompt: is missing\n"
    assert json.loads(answer["error"])["path"] == "prompt"


def test_the_clock_goes_on_while_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "_TICK_S", 0.001)
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with terminal.Bar() as bar:
        bar(events()[1])
        deadline = time.monotonic() + 30
        while screen.getvalue().count("generating   42%") < 3:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    assert not bar._clock.is_alive()


def test_a_stage_may_be_shown_without_a_percentage(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with terminal.Bar() as bar:
        bar(events()[1])
        bar.show("stopping")
        bar._bar.refresh()
    assert "stopping     42%" in screen.getvalue()


def test_the_step_and_the_time_left_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    now = [100.0]
    monkeypatch.setattr(terminal, "_now", lambda: now[0])
    with terminal.Bar() as bar:
        bar(ProgressEvent(10, "generating", 0, 5, 50))
        assert "left" not in screen.getvalue()
        now[0] += 20
        bar(ProgressEvent(20, "generating", 0, 10, 50))
        assert ", step 10/50, 3 min left" in screen.getvalue()
        now[0] += 100
        bar._draw()
        assert ", step 10/50, 60 s left" in screen.getvalue()
        now[0] += 100
        screen.truncate(screen.seek(0))
        bar._draw()
        assert "left" not in screen.getvalue()
        bar.show("encoding", 95)  # another status, another speed
        assert "step" not in screen.getvalue().splitlines()[-1].rpartition("\r")[2]


def test_stopping_is_a_line_at_once_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, drawn in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with terminal.Bar() as bar:
            bar.stop("stopping: wait")
            assert "stopping: wait\n" in stream.getvalue()
            bar(events()[1])
        assert ("  stopping     42%" in stream.getvalue()) is drawn
        assert "generating" not in stream.getvalue()


@pytest.mark.parametrize(
    ("terminal_here", "variables", "arguments", "level"),
    [
        (True, {}, [], "WARNING"),
        (True, {"LOG_LEVEL": "info"}, [], "INFO"),
        (True, {}, ["--rp_serve_api"], "INFO"),
        (True, {"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:9/$ID"}, [], "INFO"),
        (False, {}, [], "INFO"),
        (False, {"LOG_LEVEL": "error"}, [], "ERROR"),
    ],
)
def test_a_person_at_a_terminal_sees_warnings_alone(
    terminal_here: bool,
    variables: dict[str, str],
    arguments: list[str],
    level: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RUNPOD_LOG_LEVEL", "WARN")  # `_configure_logs` sets it where it is not set
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", Terminal() if terminal_here else io.StringIO())
    monkeypatch.setattr(sys, "argv", ["handler.py", *arguments])
    with logging_as_it_was():
        handler._configure_logs(settings.load())
        assert logging.getLevelName(logging.getLogger("worker").level) == level


def test_a_log_line_stands_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with terminal.Bar() as bar:
        bar(events()[1])
        bar._bar.refresh()
        terminal.BesideBar().write("out of memory: trying again\n")
    before, line, after = screen.getvalue().partition("out of memory: trying again\n")
    assert line
    assert before.endswith("\r")  # the bar was wiped before
    assert "generating   42%" in after


def test_a_label_and_its_text_are_wrapped_at_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "word " * 40
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert terminal.row("prompt", text) == [f"  prompt    {text}"]
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "60")
    lines = terminal.row("prompt", text)
    assert lines[0].startswith("  prompt    word word")
    assert all(line.startswith(" " * 12 + "word") for line in lines[1:])
    assert max(map(len, lines)) < 60
    assert terminal.row("prompt", "") == ["  prompt    "]


def test_what_a_terminal_would_take_for_a_command_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    shown_video = {**VIDEO, "gpu": "\x1b[2J\x07evil"}
    text = shown(answers.job_answer("j-1", [shown_video], {"total": 1.0}), capsys)
    assert "on ?[2J?evil" in text
    terminal.complain("a\x1b]0;title\x07\nb")
    assert capsys.readouterr().err == "a?]0;title?\nb\n"


def test_the_cost_is_shown_where_it_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(answers.job_answer("j-1", [{**VIDEO, "cost_usd": 0.2311}], {"total": 1.0}), capsys)
    assert "  cost      $0.23" in text.splitlines()
    assert "cost" not in shown(answers.job_answer("j-1", [{**VIDEO, "cost_usd": None}], {"total": 1.0}), capsys)
