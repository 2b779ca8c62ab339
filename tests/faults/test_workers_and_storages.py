"""Short forms of `benchmarks.storages`, `shared_state` and `clocks`: real workers, bad storages, one state folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import clocks, shared_state, storages


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_limit_is_kept_and_nothing_is_lost_while_the_storage_fails_in_every_way(tmp_path: Path) -> None:
    report = storages.campaign(16, tmp_path, seed=2)
    assert storages.is_good({**report, "worst_over_s": 0}), report
    assert report["worst_over_s"] < 10, report  # a limit that does not hold is missed by minutes
    assert report["jobs"] >= 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_workers_report_what_is_stored_of_a_job_that_both_were_given(tmp_path: Path) -> None:
    report = shared_state.measure(2, 3, tmp_path)
    assert report.good, report
    assert report.made == 6  # both made it: their files differ


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_worker_whose_clock_is_days_ahead_loses_nothing_of_another(tmp_path: Path) -> None:
    outcome = clocks.measure(8 * clocks.DAY_S, tmp_path)
    assert outcome.good, outcome
    assert outcome.there == 3
