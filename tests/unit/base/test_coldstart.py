from __future__ import annotations

import logging
import time
from types import SimpleNamespace

import psutil
import pytest

from worker.base.timing import ColdStart


def test_the_parts_add_up_to_the_age_of_the_process(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    before_s = time.time() - psutil.Process().create_time()
    start = ColdStart()
    for part in ("settings", "imports", "load"):
        time.sleep(0.02)
        start.reached(part)
    seconds = start.ready(3600.0)
    after_s = time.time() - psutil.Process().create_time()
    assert list(seconds) == ["settings", "imports", "load", "ready", "total"]
    assert seconds["total"] == pytest.approx(sum(value for part, value in seconds.items() if part != "total"))
    assert before_s + 0.06 <= seconds["total"] <= after_s
    assert seconds["imports"] >= 0.02
    assert seconds["load"] >= 0.02
    (record,) = caplog.records
    figures = vars(record)["fields"]
    assert figures["stage"] == "cold_start"
    assert figures["timings"].keys() == {"settings", "imports", "load", "ready"}
    assert figures["cost_usd"] == pytest.approx(figures["seconds"], abs=0.001)  # 3,600 USD an hour is 1 USD a second
    assert record.getMessage().startswith("cold start: ")
    assert record.getMessage().endswith(" USD")


def test_without_a_price_the_cost_is_unknown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ColdStart().ready(None)
    assert "cost_usd" not in vars(caplog.records[0])["fields"]
    assert "cost unknown" in caplog.text


def test_a_clock_that_is_set_back_gives_no_negative_part(monkeypatch: pytest.MonkeyPatch) -> None:
    start = ColdStart()
    now = time.time()
    times = iter([now, now - 1000.0])
    monkeypatch.setattr("worker.base.timing.time", SimpleNamespace(time=lambda: next(times)))  # the module's alone
    start.reached("load")
    seconds = start.ready(None)
    assert seconds["ready"] == 0.0
    assert seconds["total"] >= 0.0
