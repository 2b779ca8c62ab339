"""Run stages of the measurement in one process: `python -m benchmarks.on_gpu.measure STAGES --out FOLDER`.

One process has one engine on random weights, made once: facts, race, job480, job720, attention, pass, decode,
decode_profile, turbo480, turbo720, linear, profile, compile, compile720, weights, pinned; then those with an engine of
their own, for which the first one makes room: fp8, stock480, swap48, swap24.
Each stage writes its lines to FOLDER/results.jsonl as soon as it has them. A stage that fails or runs out of time says
so in a line, and the next one runs. --tiny: tiny classes on the CPU, to see that it works.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import gpu_rates
from benchmarks.on_gpu import memory, passes, videos
from benchmarks.on_gpu.bench import BEGAN, Bench, Notes
from worker.engine import device


class OverTime(BaseException):
    """A stage took longer than it may."""


@dataclass(frozen=True)
class Stage:
    """`limit_s` is what it may take; it is left out where less than `expected_s` (on one H100) is left."""

    run: Callable[[Bench], None]
    limit_s: int
    expected_s: int
    needs_rates: bool = False
    own_engine: bool = False


STAGES: Mapping[str, Stage] = {
    "facts": Stage(videos.facts, 40, 10),
    "race": Stage(memory.race, 30, 4),
    "job480": Stage(videos.job480, 120, 35, needs_rates=True),
    "attention": Stage(passes.attention_, 40, 8),
    "job720": Stage(videos.job720, 150, 50, needs_rates=True),
    "decode": Stage(videos.decode, 80, 25),
    "decode_profile": Stage(videos.decode_profile, 40, 12),
    "pass": Stage(passes.pass_, 60, 14, needs_rates=True),
    "linear": Stage(passes.linear, 60, 10),
    "turbo480": Stage(videos.turbo480, 70, 28),
    "turbo720": Stage(videos.turbo720, 120, 60),
    "profile": Stage(passes.profile, 40, 12),
    "compile": Stage(passes.compile_, 150, 60, needs_rates=True),
    "compile720": Stage(passes.compile720, 120, 60, needs_rates=True),
    "fp8": Stage(memory.fp8, 120, 25, own_engine=True),
    "stock480": Stage(videos.stock480, 110, 55, own_engine=True),
    "weights": Stage(memory.weights, 90, 40),
    "pinned": Stage(memory.pinned, 60, 20),
    "swap48": Stage(memory.swap48, 150, 50, own_engine=True),
    "swap24": Stage(memory.swap24, 150, 50, own_engine=True),
}
_LOGGED = ("worker.engine.techniques", "worker.engine.models.pool", "worker.engine.engine")


@contextlib.contextmanager
def _within(seconds: int) -> Iterator[None]:
    def over(*_: object) -> None:
        raise OverTime

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(names: list[str], bench: Bench, notes: Notes, *, seconds: float) -> bool:
    """The stages, one after the other; whether all of them ran and succeeded."""
    good = True
    for name in names:
        stage = STAGES[name]
        left_s = seconds - (time.perf_counter() - BEGAN)
        if not bench.tiny and left_s < stage.expected_s:
            notes.add(name, "left out", f"{left_s:.0f} s are left, it takes about {stage.expected_s}")
            continue
        began = time.perf_counter()
        try:
            if bench.rates is None and stage.needs_rates:
                bench.rates = gpu_rates.measure(bench.small, bench.device)
            if stage.own_engine:
                bench.release()
            with _within(max(1, int(min(stage.limit_s, left_s)))):
                stage.run(bench)
        except BaseException as failure:  # noqa: BLE001 - the next stage counts too
            good = False
            notes.add(name, "FAILED", f"{type(failure).__name__}: {str(failure)[:300]}")
            traceback.print_exc()
            traceback.clear_frames(failure.__traceback__)
            if isinstance(failure, KeyboardInterrupt):
                break
        notes.add(name, "stage, s", time.perf_counter() - began)
        with contextlib.suppress(Exception):
            bench.reset()
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", help="names with commas between")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=1e9, help="of this process, its start included")
    parser.add_argument("--host-gb", type=float, help="GiB of main memory, where the machine shows less than it has")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    names = options.stages.split(",")
    if unknown := [name for name in names if name not in STAGES]:
        parser.error(f"no such stage: {', '.join(unknown)}")
    if not options.tiny and not torch.cuda.is_available():
        parser.error("no CUDA GPU is here; --tiny runs on the CPU")
    if options.host_gb:
        device.host_memory_bytes = lambda: int(options.host_gb * 2**30)
    logging.basicConfig(level=logging.WARNING)
    for name in _LOGGED:
        logging.getLogger(name).setLevel(logging.INFO)
    notes = Notes(options.out)
    with tempfile.TemporaryDirectory(prefix="videogen-measure-") as home:
        good = run(names, Bench(notes, Path(home), tiny=options.tiny), notes, seconds=options.seconds)
    return 0 if good else 1


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    code = main()
    sys.stdout.flush()
    os._exit(code)  # no wait for threads that still load what a stage ended
