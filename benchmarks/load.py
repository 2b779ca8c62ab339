"""How long weights take from a cold disk, and how soon the first step runs: the worker's reading against others.

    python -m benchmarks.load                    4.7 GB of a cut-down A14B expert, and a start at 300 MB/s
    python -m benchmarks.load --candidates       the ways that were weighed up, too
    python -m benchmarks.load --quick            a few MB, to see that it works

Every run is a process of its own over files that the page cache was made to forget; the ways take turns, and medians
are printed. "from_pretrained" is followed by a copy of every weight, as `.to("cuda")` would read it: alone it returns
before anything was read. "through staging" leaves out the fresh host memory, which weights for a GPU do not need:
everything is read, into memory that is used again and again, as a GPU's staging blocks are.

The start is that of the worker's own engine on a model of cut-down experts whose disk is paced: the time until the
first denoising step is done, with all weights waited for and with the overlapped start.
Prints tables and writes `benchmarks/results/load-DATE.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import reporting
from benchmarks.load_ways import CANDIDATES, CONVERTED, OURS, STAGED, WAYS, Run, measure
from benchmarks.reporting import RESULTS

PACE = 300e6


@dataclass(frozen=True)
class Size:
    """blocks: of the expert that is read; start_blocks: of each expert of the model that is started."""

    blocks: int
    start_blocks: int
    pace: float
    repeats: int


FULL = Size(blocks=6, start_blocks=1, pace=PACE, repeats=3)


class Pace:
    """Positional reads at no more than so many bytes a second in all, whoever reads."""

    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    def __call__(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        count = os.preadv(descriptor, buffers, offset)
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + count / self._rate
            wait_s = self._free_at - time.monotonic()
        time.sleep(max(0.0, wait_s))
        return count


def start(folder: Path, pace: float, *, overlap: bool) -> dict[str, float]:
    """Seconds from the engine's first wish for weights until its first step is done, and until the last."""
    import functools

    from tests.kits.engine_kit import request
    from worker.base.settings import Settings
    from worker.base.stop import Stop
    from worker.engine import Engine, Preview
    from worker.engine.device import planner_for
    from worker.weights.sources import demo
    from worker.weights.tensors import reading

    class Source:
        def folder(self, *_: object) -> Path:
            return folder

    moments: dict[str, float] = {}

    class Watcher:
        def loading(self, fraction: float) -> None: ...

        def generating(self, fraction: float) -> None:
            if fraction > 0:
                moments.setdefault("first_step_s", time.perf_counter() - began)

        def preview(self, preview: Preview) -> None: ...

    engine = Engine(Source(), demo.catalogue(), planner_for(Settings()))
    engine.models._read = functools.partial(reading.read, preadv=Pace(pace))
    engine.models._overlap = overlap
    video = replace(request(num_inference_steps=4, guidance_scale=1.0), width=64, height=64)
    began = time.perf_counter()
    engine.generate(engine.video(video), watcher=Watcher(), stop=Stop())
    moments["latents_s"] = time.perf_counter() - began
    return moments


def _in_a_process(*arguments: str) -> Any:
    command = [sys.executable, "-m", "benchmarks.load", *arguments]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(answer.stdout.splitlines()[-1])


def _runs(ways: Sequence[str], folder: Path, repeats: int) -> list[Run]:
    from benchmarks.load_files import evict

    runs = []
    for repeat in range(repeats):
        for way in ways:
            print(f"run {repeat + 1} of {repeats}: {way}", file=sys.stderr)
            evict(folder)
            runs.append(Run(**_in_a_process("--measure", way, str(folder))))
    return runs


def _table(medians: Sequence[Run], nbytes: int) -> str:
    rows = [
        (
            *(run.way, f"{run.seconds:.2f}", f"{nbytes / 1e9 / run.seconds:.2f}"),
            *(f"{run.cpu_seconds:.1f}", f"{run.peak_gb:.1f}"),
        )
        for run in medians
    ]
    return reporting.table(("way", "time (s)", "GB/s", "CPU (s)", "peak (GB)"), rows)


def _starts(home: Path, size: Size) -> dict[str, Any]:
    from benchmarks.load_files import evict, write_model

    folder = home / "model"
    nbytes = write_model(folder, blocks=size.start_blocks)
    measured: dict[str, list[dict[str, float]]] = {"whole": [], "overlapped": []}
    for repeat in range(size.repeats):
        for way in measured:
            print(f"start {repeat + 1} of {size.repeats}: {way}", file=sys.stderr)
            evict(folder)
            measured[way].append(_in_a_process("--start", way, str(folder), str(size.pace)))
    middles = {way: reporting.median_of(runs) for way, runs in measured.items()}
    return {"bytes": nbytes, "pace_mb_s": size.pace / 1e6, "medians": middles, "runs": measured}


def _experts(home: Path, size: Size, ways: Sequence[str]) -> dict[str, Any]:
    import torch

    from benchmarks.load_files import write_expert

    groups: dict[str, Any] = {}
    for name, dtype, chosen in (("bf16", torch.bfloat16, ways), ("fp32", torch.float32, CONVERTED)):
        folder = home / name / "transformer"
        blocks = size.blocks if name == "bf16" else max(1, size.blocks // 2)
        nbytes = write_expert(folder, blocks=blocks, dtype=dtype)
        runs = _runs(chosen, folder, size.repeats)
        medians = reporting.medians(runs, "way")
        print(f"\n{nbytes / 1e9:.2f} GB of {name} in shards, cold page cache, medians of {size.repeats}\n")
        print(_table(medians, nbytes), flush=True)
        groups[name] = {
            "bytes": nbytes,
            "medians": reporting.as_dicts(medians),
            "runs": [asdict(run) for run in runs],
        }
    return groups


def _summary(groups: dict[str, Any] | None, starts: dict[str, Any] | None) -> dict[str, float]:
    summary: dict[str, float] = {}
    if groups is not None:
        seconds = {run["way"]: run["seconds"] for group in groups.values() for run in group["medians"]}
        summary |= {
            "against_cat": seconds[OURS] / seconds["cat"],
            "against_from_pretrained": seconds[OURS] / seconds["from_pretrained"],
            "staged_against_cat": seconds[STAGED[1]] / seconds["cat"],
            "staged_against_from_pretrained": seconds[STAGED[1]] / seconds[STAGED[0]],
            "converted_against_from_pretrained": seconds[CONVERTED[1]] / seconds[CONVERTED[0]],
        }
    if starts is not None:
        whole, overlapped = starts["medians"]["whole"], starts["medians"]["overlapped"]
        summary |= {
            "first_step_whole_s": whole["first_step_s"],
            "first_step_overlapped_s": overlapped["first_step_s"],
            "first_step_saved_s": whole["first_step_s"] - overlapped["first_step_s"],
            "latents_saved_s": whole["latents_s"] - overlapped["latents_s"],
        }
    return summary


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the loading of weights, and the start to the first step.")
    parser.add_argument("--candidates", action="store_true", help="also the ways that were weighed up")
    parser.add_argument("--quick", action="store_true", help="one small run of each; a file only with --output")
    parser.add_argument("--part", choices=("experts", "start"), help="one half of it, into a file of its own")
    parser.add_argument("--repeats", type=int, default=FULL.repeats)
    parser.add_argument("--folder", type=Path, help="where to write the files (default: a temporary folder)")
    parser.add_argument("--output", type=Path, help=f"folder of the result (default {RESULTS.name}; none with --quick)")
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--start", nargs=3, metavar=("WAY", "FOLDER", "PACE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(asdict(measure(options.measure[0], Path(options.measure[1])))))
        return 0
    if options.start is not None:
        way, folder, pace = options.start
        print(json.dumps(start(Path(folder), float(pace), overlap=way == "overlapped")))
        return 0
    size = replace(FULL, repeats=1 if options.quick else options.repeats)
    if options.quick:
        size = replace(size, blocks=1, pace=2 * PACE)
    with tempfile.TemporaryDirectory(dir=options.folder) as home:
        ways = (*WAYS, *CANDIDATES) if options.candidates else WAYS
        groups = _experts(Path(home), size, ways) if options.part != "start" else None
        starts = _starts(Path(home), size) if options.part != "experts" else None
    summary = _summary(groups, starts)
    if starts is not None:
        print(
            f"\nstart of {starts['bytes'] / 1e9:.2f} GB at {starts['pace_mb_s']:.0f} MB/s, medians of {size.repeats}:"
        )
    for name, value in summary.items():
        print(f"  {name:<36} {value:6.2f}")
    folder = options.output if options.output is not None else (None if options.quick else RESULTS)
    if folder is not None:
        name = "load" if options.part is None else f"load-{options.part}"
        result = {"size": asdict(size), "experts": groups, "start": starts, "summary": summary}
        reporting.write(folder, name, result, "torch", "diffusers", "safetensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
