"""Parts of a model that arrive in the background: in order, one at a time, with every failure told to who waits."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from worker.base.errors import Cancelled, JobTimeout, ModelUnavailable
from worker.base.log import current_job_id, job_scope
from worker.base.stop import Stop
from worker.engine.models.arrivals import Arrivals, Part, Progress, Turns, wait_for

PATIENCE_S = 10.0


class Gate:
    """A filling that waits until it is let through, block by block."""

    def __init__(self, blocks: int = 1) -> None:
        self.begun = threading.Event()
        self._through = threading.Semaphore(0)
        self._blocks = blocks

    def let(self, blocks: int = 1) -> None:
        self._through.release(blocks)

    def __call__(self, check: Callable[[], None], on_bytes: Callable[[int], None]) -> None:
        self.begun.set()
        for _ in range(self._blocks):
            while not self._through.acquire(timeout=0.01):
                check()
            check()
            on_bytes(10)


def part(name: str, fill: Any = lambda check, on_bytes: None, nbytes: int = 10) -> Part:
    return Part(name, nn.Linear(1, 1), nbytes, fill)


def started(*parts: Part, turns: Turns | None = None, label: str = "m") -> Arrivals:
    arrivals = Arrivals(label, parts, Turns() if turns is None else turns)
    arrivals.start()
    return arrivals


def test_parts_arrive_in_their_order_and_each_can_be_used_before_the_next() -> None:
    first, second = Gate(), Gate()
    parts = part("a", first), part("b", second)
    started(*parts)
    first.let()
    parts[0].wait()
    assert (parts[0].there, parts[1].there) == (True, False)
    second.let()
    parts[1].wait()
    assert parts[1].there


def test_the_parts_arrive_within_the_job_that_asked_for_them() -> None:
    """What is logged on the way carries its id, also when the job is over."""
    gate, jobs = Gate(), []

    def fill(check: Callable[[], None], on_bytes: Callable[[int], None]) -> None:
        gate(check, on_bytes)
        jobs.append(current_job_id())

    on_its_way = part("a", fill)
    with job_scope("job-1"):
        started(on_its_way)
    gate.let()
    on_its_way.wait()
    assert jobs == ["job-1"]


def test_a_stop_ends_the_wait_and_the_weights_still_come_for_the_next_job() -> None:
    gate, stop = Gate(), Stop()
    on_its_way = part("a", gate)
    started(on_its_way)
    threading.Timer(0.05, stop.request, (JobTimeout("too long"),)).start()
    with pytest.raises(JobTimeout):
        wait_for([on_its_way], Progress(stop))
    gate.let()
    wait_for([on_its_way], Progress(Stop()))
    assert on_its_way.there


def test_a_stop_ends_a_wait_that_began_elsewhere() -> None:
    """The low-noise expert is waited for where it is called, by the stop of the job in hand."""
    gate = Gate()
    on_its_way = part("a", gate)
    arrivals = started(on_its_way)
    on_its_way.stop = Stop()
    threading.Timer(0.05, on_its_way.stop.request, (Cancelled(),)).start()
    with pytest.raises(Cancelled):
        on_its_way.wait()
    arrivals.cancel()


def test_a_failure_is_raised_where_the_part_is_waited_for_and_fails_what_comes_after() -> None:
    def broken(check: object, on_bytes: object) -> None:
        raise ModelUnavailable("x.safetensors: it ends early")

    parts = part("a"), part("b", broken), part("c")
    started(*parts)
    parts[0].wait()
    for each in parts[1:]:
        for _ in range(2):
            with pytest.raises(ModelUnavailable, match="it ends early"):
                each.wait()
        assert each.failed


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (OSError(5, "Input/output error"), ModelUnavailable),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
        (RuntimeError("unforeseen"), RuntimeError),
    ],
)
def test_who_waits_is_told_in_the_terms_of_the_contract(raised: Exception, told: type[Exception]) -> None:
    def broken(check: object, on_bytes: object) -> None:
        raise raised

    on_its_way = part("a", broken)
    started(on_its_way)
    with pytest.raises(told):
        on_its_way.wait()


def test_a_failure_that_is_kept_does_not_keep_the_weights() -> None:
    class Weights:
        pass

    kept: list[weakref.ref[Weights]] = []

    def inner() -> None:
        weights = Weights()
        kept.append(weakref.ref(weights))
        raise OSError(5, "Input/output error")

    def broken(check: object, on_bytes: object) -> None:
        try:
            inner()
        except OSError as failure:
            raise ModelUnavailable("it ends early") from failure

    on_its_way = part("a", broken)
    started(on_its_way)
    with pytest.raises(ModelUnavailable):
        on_its_way.wait()
    gc.collect()
    assert kept[0]() is None


def test_a_cancelled_loading_ends_after_the_block_in_hand() -> None:
    gate = Gate(blocks=1000)
    parts = part("a", gate), part("b")
    arrivals = started(*parts)
    gate.let(3)
    assert gate.begun.wait(PATIENCE_S)
    arrivals.cancel()
    assert parts[0].read_bytes <= 30
    for each in parts:
        with pytest.raises(ModelUnavailable, match="unloaded while it was being loaded"):
            each.wait()


def test_one_part_is_read_at_a_time_and_one_that_is_waited_for_comes_before_other_models() -> None:
    turns, order = Turns(), []
    lock, busy = threading.Lock(), [0]
    first = Gate()

    def noted(name: str, gate: Gate | None = None) -> Any:
        def fill(check: Callable[[], None], on_bytes: Callable[[int], None]) -> None:
            with lock:
                busy[0] += 1
                assert busy[0] == 1
                order.append(name)
            if gate is not None:
                gate(check, on_bytes)
            with lock:
                busy[0] -= 1

        return fill

    one = part("1a", noted("1a", first)), part("1b", noted("1b")), part("1c", noted("1c"))
    two = part("2a", noted("2a")), part("2b", noted("2b"))
    started(*one, turns=turns, label="one")
    assert first.begun.wait(PATIENCE_S)
    started(*two, turns=turns, label="two")
    waiting = threading.Thread(target=two[1].wait)
    waiting.start()
    while turns._first is None:
        pass
    first.let()
    waiting.join(PATIENCE_S)
    one[2].wait()
    assert order == ["1a", "2a", "2b", "1b", "1c"]


def test_a_model_that_waits_for_its_turn_can_be_cancelled() -> None:
    turns, gate = Turns(), Gate()
    first, second = started(part("a", gate), turns=turns), started(part("b"), turns=turns)
    assert gate.begun.wait(PATIENCE_S)
    second.cancel()
    assert second.parts[0].failed
    assert not first.parts[0].failed
    gate.let()
    first.parts[0].wait()


def test_hurrying_what_is_finished_holds_nobody_up() -> None:
    turns = Turns()
    first = started(part("a"), turns=turns)
    first.parts[0].wait()
    first._thread.join(PATIENCE_S)
    first.hurry()
    second = started(part("b"), turns=turns)
    second.parts[0].wait()


def test_the_share_that_is_there_is_told_and_never_goes_down() -> None:
    gate = Gate(blocks=4)
    on_its_way = part("a", gate, nbytes=40)
    started(on_its_way)
    told: list[float] = []

    def hear(share: float) -> None:
        told.append(share)
        gate.let()

    wait_for([on_its_way], Progress(Stop(), hear))
    assert told[0] == 0.0
    assert told == sorted(told)
    assert 0.25 in told


def test_what_happens_on_arrival_happens_once_and_in_the_thread_that_waits() -> None:
    on_its_way = part("a")
    threads: list[threading.Thread] = []
    on_its_way.on_arrival = lambda: threads.append(threading.current_thread())
    started(on_its_way)
    on_its_way.wait()
    on_its_way.wait()
    assert threads == [threading.current_thread()]


@pytest.mark.slow
def test_a_process_that_ends_does_not_wait_for_the_weights() -> None:
    code = (
        "import time\n"
        "from torch import nn\n"
        "from worker.engine.models.arrivals import Arrivals, Part, Turns\n"
        "def fill(check, on_bytes):\n"
        "    while True:\n"
        "        time.sleep(0.01)\n"
        "        check()\n"
        "turns = Turns()\n"
        "for name in 'ab':\n"
        "    Arrivals(name, [Part(name, nn.Linear(1, 1), 1, fill)], turns).start()\n"
    )
    root = Path(__file__).resolve().parents[3]
    ended = subprocess.run([sys.executable, "-c", code], cwd=root, timeout=200, capture_output=True, check=True)
    assert ended.stderr == b""
