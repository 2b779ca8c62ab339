from __future__ import annotations

import logging
import multiprocessing
import os
import random
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from datetime import date
from pathlib import Path

import pytest

from tests.kits.delivery import no_file_above
from worker.base import locks
from worker.base.errors import InvalidRequest
from worker.base.files import StateFolder
from worker.delivery.journal import Entry, Journal
from worker.request.contact import payload_digest

FORK = multiprocessing.get_context("fork")
DAY = date(2025, 3, 1)
LATER = date(2025, 3, 2)


def journal_in(folder: Path, now_s: float | None = None) -> Journal:
    return Journal(StateFolder(folder)) if now_s is None else Journal(StateFolder(folder), now=lambda: now_s)


def entry_files(folder: Path) -> list[Path]:
    return sorted((folder / "jobs").iterdir())


def test_a_redelivered_job_keeps_its_day_seeds_and_results(tmp_path: Path) -> None:
    first = journal_in(tmp_path)
    accepted = first.accept("abc-123", "d1", today=DAY, seeds=[1, 2**63 - 1])
    assert (accepted.accepted_on, accepted.seeds, accepted.finished) == (DAY, (1, 2**63 - 1), {})
    result = {"index": 1, "video_url": "https://cdn.example/v.mp4", "prompt": "été 雪", "cost_usd": None}
    first.record_result("abc-123", 1, result)
    first.record_arrived("abc-123", "evt_1")

    again = journal_in(tmp_path).accept("abc-123", "d1", today=LATER, seeds=[7, 8])
    assert again.accepted_on == DAY
    assert again.seeds == (1, 2**63 - 1)
    assert dict(again.finished) == {1: result}
    assert again.told == frozenset({"evt_1"})
    assert journal_in(tmp_path).has_arrived("abc-123", "evt_1")
    assert not journal_in(tmp_path).has_arrived("abc-123", "evt_2")


def test_another_payload_under_one_job_id_is_an_error_that_says_so(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    journal.accept("abc", "d1", today=DAY, seeds=[1])
    with pytest.raises(InvalidRequest) as caught:
        journal.accept("abc", "d2", today=DAY, seeds=[1])
    assert caught.value.path == "job_id"
    assert str(caught.value) == "job_id: was used with another payload; send a new job_id"
    journal.accept("abC", "d2", today=DAY, seeds=[1])


def test_the_digest_ignores_the_order_of_keys_and_nothing_else() -> None:
    same = payload_digest({"a": 1, "b": [1, {"c": None, "d": "é"}]})
    assert same == payload_digest({"b": [1, {"d": "é", "c": None}], "a": 1})
    others = [
        {"a": 1.0, "b": [1, {"c": None, "d": "é"}]},
        {"a": True, "b": [1, {"c": None, "d": "é"}]},
        {"a": "1", "b": [1, {"c": None, "d": "é"}]},
        {"a": 1, "b": [{"c": None, "d": "é"}, 1]},
        {"a": 1, "b": [1, {"c": None, "d": "e"}]},
    ]
    assert len({same, *map(payload_digest, others)}) == 6
    assert payload_digest({"p": "\ud800", "n": float("nan")}) == payload_digest({"n": float("nan"), "p": "\ud800"})
    assert len(payload_digest(None)) == 64


def test_the_first_result_of_a_video_stays(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    journal.accept("abc", "d1", today=DAY, seeds=[1])
    journal.record_result("abc", 0, {"n": 1})
    journal.record_result("abc", 0, {"n": 2})
    entry = journal.entry("abc")
    assert entry is not None
    assert entry.finished == {0: {"n": 1}}


def test_the_record_of_a_video_that_is_gone_is_replaced_once(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    journal.accept("abc", "d1", today=DAY, seeds=[1])
    gone = {"n": 1, "seconds": 0.1}
    journal.record_result("abc", 0, gone)
    journal.record_result("abc", 0, {"n": 2}, replacing=dict(gone))
    journal.record_result("abc", 0, {"n": 3}, replacing=dict(gone))  # another worker that found it gone too
    entry = journal.entry("abc")
    assert entry is not None
    assert entry.finished == {0: {"n": 2}}


def test_what_was_to_be_replaced_need_not_be_there(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    journal.accept("abc", "d1", today=DAY, seeds=[1])
    journal.record_result("abc", 0, {"n": 2}, replacing={"n": 1})
    entry = journal.entry("abc")
    assert entry is not None
    assert entry.finished == {0: {"n": 2}}


@pytest.mark.parametrize(("age_s", "kept"), [(7 * 86400 - 1, True), (7 * 86400 + 1, False)])
def test_an_entry_expires_after_seven_days(tmp_path: Path, age_s: float, kept: bool) -> None:
    journal_in(tmp_path, 1000.0).accept("abc", "d1", today=DAY, seeds=[1])
    later = journal_in(tmp_path, 1000.0 + age_s)
    assert (later.entry("abc") is not None) == kept
    if not kept:  # its id may be used for something else
        assert later.accept("abc", "d2", today=LATER, seeds=[9]).seeds == (9,)


def test_the_sweep_removes_expired_entries(tmp_path: Path) -> None:
    now = time.time()
    journal = journal_in(tmp_path, now)
    journal.accept("old", "d1", today=DAY, seeds=[1])
    journal.accept("new", "d1", today=DAY, seeds=[1])
    old = next(path for path in entry_files(tmp_path) if path.name.endswith("-old.json"))
    os.utime(old, (now - 8 * 86400, now - 8 * 86400))
    journal.sweep()
    assert [path.name[-8:] for path in entry_files(tmp_path)] == ["new.json"]


@pytest.mark.parametrize("damage", [b"", b"{", b"null", b'{"job_id": "abc"}', b"\x00" * 400, "half"])
def test_a_damaged_entry_counts_as_absent_and_is_set_aside(
    tmp_path: Path, damage: bytes | str, caplog: pytest.LogCaptureFixture
) -> None:
    journal = journal_in(tmp_path)
    journal.accept("abc", "d1", today=DAY, seeds=[1])
    (path,) = entry_files(tmp_path)
    whole = path.read_bytes()
    content = whole[: len(whole) // 2] if isinstance(damage, str) else damage
    path.write_bytes(content)
    assert journal.accept("abc", "d2", today=LATER, seeds=[5]).seeds == (5,)
    assert path.with_name(path.name + ".damaged").read_bytes() == content
    assert len(caplog.records) == 1
    assert journal.accept("abc", "d2", today=LATER, seeds=[6]).seeds == (5,)


@pytest.mark.parametrize("job_id", ["..", "a" * 128, ".tmp-x", "-", "CON", "a.json"])
def test_every_job_id_has_a_file_of_its_own_inside_the_folder(tmp_path: Path, job_id: str) -> None:
    journal = journal_in(tmp_path)
    journal.accept(job_id, "d1", today=DAY, seeds=[1])
    journal.accept(job_id + "x", "d1", today=DAY, seeds=[2])
    assert len(entry_files(tmp_path)) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"jobs", "locks"}
    assert journal_in(tmp_path).accept(job_id, "d1", today=DAY, seeds=[3]).seeds == (1,)


def test_an_unwritable_folder_costs_only_the_protection_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    journal = journal_in(tmp_path / "file")
    for seed in (1, 2):
        entry = journal.accept("abc", f"d{seed}", today=DAY, seeds=[seed])
        assert entry.seeds == (seed,)
        journal.record_result("abc", 0, {"n": 1})
        journal.record_arrived("abc", "evt_1")
        assert journal.entry("abc") is None
        assert not journal.has_arrived("abc", "evt_1")
        assert not journal.record_unstored(entry, 0, {"n": 1})
        journal.sweep()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_full_volume_still_reads_what_is_there(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    journal.accept("abc", "d1", today=DAY, seeds=[1])
    journal.record_result("abc", 0, {"n": 1})
    with no_file_above(10):
        journal.record_result("abc", 1, {"n": 2})
        assert journal.accept("abc", "d1", today=DAY, seeds=[2]).finished == {0: {"n": 1}}
        assert journal.accept("other", "d1", today=DAY, seeds=[2]).seeds == (2,)
    assert len(entry_files(tmp_path)) == 1


def test_a_lock_that_is_never_freed_costs_only_the_protection(tmp_path: Path) -> None:
    journal = Journal(StateFolder(tmp_path), lock_wait_s=0.05)
    journal.accept("abc", "d1", today=DAY, seeds=[1])
    with ExitStack() as held:
        for lock in (tmp_path / "locks").iterdir():
            held.enter_context(locks.locked(lock, wait_s=0.0))
        assert journal.accept("abc", "d1", today=DAY, seeds=[2]).seeds == (1,)
        with pytest.raises(InvalidRequest):
            journal.accept("abc", "d2", today=DAY, seeds=[2])
        journal.record_arrived("abc", "evt_1")
    assert not journal.has_arrived("abc", "evt_1")


def test_a_video_is_unstored_until_a_result_of_it_is_recorded(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    entry = journal.accept("abc", "d1", today=DAY, seeds=[1, 2])
    for index in (0, 1):
        assert journal.record_unstored(entry, index, {"n": index})
    again = journal_in(tmp_path).accept("abc", "d1", today=LATER, seeds=[7, 8])
    assert (again.unstored, again.finished) == ({0: {"n": 0}, 1: {"n": 1}}, {})
    journal.record_result("abc", 0, {"n": 5})
    again = journal.accept("abc", "d1", today=LATER, seeds=[7, 8])
    assert (again.unstored, again.finished) == ({1: {"n": 1}}, {0: {"n": 5}})


def test_nothing_is_unstored_beside_the_entry_of_another_payload(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    entry = journal_in(tmp_path / "other").accept("abc", "d2", today=DAY, seeds=[1])
    assert not journal.record_unstored(entry, 0, {"n": 1})
    journal.accept("abc", "d1", today=DAY, seeds=[1])
    assert not journal.record_unstored(entry, 0, {"n": 1})
    assert journal.accept("abc", "d1", today=DAY, seeds=[1]).unstored == {}


def test_what_is_not_json_in_a_result_does_not_raise(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    journal.accept("abc", "d1", today=DAY, seeds=[1])
    journal.record_result("abc", 0, {"n": object()})
    journal.record_result("abc", 1, {"n": float("nan"), "p": "\ud800"})
    entry = journal.entry("abc")
    assert entry is not None
    assert entry.finished.keys() <= {1}


def _accept(folder: Path, seed: int) -> Entry:
    journal = journal_in(folder)
    entry = journal.accept("abc", "d1", today=DAY, seeds=[seed])
    journal.record_result("abc", seed, {"seed": seed})
    return entry


def test_workers_that_accept_one_job_at_once_agree_and_lose_nothing(tmp_path: Path) -> None:
    with ProcessPoolExecutor(8, mp_context=FORK) as pool:
        entries = list(pool.map(_accept, [tmp_path] * 16, range(16)))
    assert len({entry.seeds for entry in entries}) == 1
    merged = journal_in(tmp_path).entry("abc")
    assert merged is not None
    assert merged.seeds == entries[0].seeds
    assert sorted(merged.finished) == list(range(16))


def _write_for_ever(folder: Path, job_id: str) -> None:
    journal = journal_in(folder)
    count = len(journal.accept(job_id, "d1", today=DAY, seeds=[1]).told)
    while True:
        journal.record_result(job_id, count % 50, {"text": "x" * random.randrange(20_000)})
        journal.record_arrived(job_id, f"evt_{count}")
        count += 1


def test_kill_9_at_any_moment_leaves_a_readable_entry_and_no_lock(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moments = random.Random(20)
    known = 0
    for _ in range(8):
        process = FORK.Process(target=_write_for_ever, args=(tmp_path, "abc"))
        process.start()
        deadline = time.monotonic() + 20
        while (seen := journal_in(tmp_path).entry("abc")) is None or len(seen.told) <= known:
            assert time.monotonic() < deadline
        time.sleep(moments.uniform(0.0, 0.02))
        process.kill()
        process.join()
        process.close()
        entry = journal_in(tmp_path).accept("abc", "d1", today=LATER, seeds=[2])
        assert entry.accepted_on == DAY
        assert len(entry.told) > known
        known = len(entry.told)
    assert caplog.records == []  # nothing was damaged
    journal_in(tmp_path, time.time() + 3700).sweep()
    assert len(entry_files(tmp_path)) == 1


def test_a_worker_whose_clock_is_8_days_ahead_removes_and_forgets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal_in(tmp_path).accept("a", "d1", today=DAY, seeds=[1])
    journal_in(tmp_path).record_result("a", 0, {"index": 0})
    true = time.time
    with monkeypatch.context() as other:
        other.setattr(time, "time", lambda: true() + 8 * 24 * 3600)
        wrong = journal_in(tmp_path)
        wrong.sweep()
        assert wrong.accept("a", "d1", today=LATER, seeds=[2]).finished == {0: {"index": 0}}
        wrong.accept("b", "d1", today=LATER, seeds=[2])
    for job_id in ("a", "b"):
        entry = journal_in(tmp_path).entry(job_id)
        assert entry is not None
        assert abs(entry.accepted_at - time.time()) < 60


def test_one_worker_at_a_time_stores_a_video(tmp_path: Path) -> None:
    first, second = journal_in(tmp_path), journal_in(tmp_path)
    with first.storing("a", 0, wait_s=0.0):
        with pytest.raises(BlockingIOError), second.storing("a", 0, wait_s=0.05):
            pytest.fail("both store it")
        with pytest.raises(BlockingIOError), second.storing("a", 0, wait_s=60.0, stopped=lambda: True):
            pytest.fail("both store it")
        with second.storing("a", 1, wait_s=0.0), second.storing("A", 0, wait_s=0.0):
            pass
    with second.storing("a", 0, wait_s=0.0):
        pass
    assert list((tmp_path / "claims").iterdir()) == []


def test_an_unwritable_folder_keeps_nobody_from_storing(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file in the way")
    with journal_in(tmp_path / "state").storing("a", 0, wait_s=0.0):
        pass
