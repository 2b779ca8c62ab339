"""How long `python handler.py` takes until it asks the platform for a job, on the demo model, and on what it spends it.

    python -m benchmarks.startup [--runs 5] [--against another/handler.py]

Each run is a process of its own and a worker of the platform's double on loopback; those of another handler take turns
with the worker's own. "ready" is the line of the log, "polling" the first question for a job. The imports are those of
further runs under `-X importtime`, which slows them. Prints medians and writes a dated JSON beside the other results.
Seconds on a shared machine mean little: compare what was measured in one run.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks import reporting
from benchmarks.reporting import RESULTS
from tests.kits.platform_double import Platform

ROOT = Path(__file__).resolve().parent.parent
HANDLER = ROOT / "handler.py"
WATCHED = ("torch", "diffusers", "transformers", "peft", "accelerate", "runpod", "cpuinfo", "boto3", "pydantic",
           "worker.doctor", "worker.engine.engine", "worker.delivery.storage")  # fmt: skip
_IMPORT = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \| ( *)(\S+)")
_GIVE_UP_S = 300.0


def one_run(handler: Path, *, imports: bool = False) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds until the worker is ready and until it polls; with `imports`, the cumulative seconds of those watched."""
    marks: dict[str, float] = {}
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as home, Platform() as double:
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": home,
            "PYTHONPATH": str(ROOT),
            "MODEL_PROFILE": "demo",
            "STATE_DIR": home,
            "OUTPUT_DIR": home,
            **double.environment("w"),
        }
        options = ("-X", "importtime") if imports else ()
        began = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, *options, str(handler)],
            cwd=home,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:

            def listen() -> None:
                for line in process.stdout or ():
                    if match := _IMPORT.match(line):
                        if match[4] in WATCHED:
                            found[match[4]] = int(match[2]) / 1e6
                    elif " ready on " in line:
                        marks.setdefault("ready", time.perf_counter() - began)

            listener = threading.Thread(target=listen)
            listener.start()
            while not double.has_polled("w"):
                if process.poll() is not None or time.perf_counter() - began > _GIVE_UP_S:
                    raise RuntimeError("the handler never asked for a job")
                time.sleep(0.005)
            marks["polling"] = time.perf_counter() - began
            process.kill()
            listener.join()
    return marks, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--against", type=Path, help="another handler.py, to take turns with")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    handlers = {"worker": HANDLER} | ({"against": options.against} if options.against is not None else {})
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in handlers}
    for run in range(options.runs + 1):  # the first warms the page cache
        for name, handler in handlers.items():
            marks, _ = one_run(handler)
            if run > 0:
                measured[name].append(marks)
    spent = [one_run(HANDLER, imports=True)[1] for _ in range(min(3, options.runs))]
    medians = {name: reporting.median_of(runs) for name, runs in measured.items()}
    shares = {name: statistics.median(imports.get(name, 0.0) for imports in spent) for name in WATCHED}
    for name, marks in medians.items():
        print(f"{name}: ready {marks['ready']:.2f} s, polling {marks['polling']:.2f} s, medians of {options.runs}")
    for name, seconds in sorted(shares.items(), key=lambda item: -item[1]):
        print(f"  import {name:<16} {seconds:6.2f} s")
    worker = {f"{mark}_s": seconds for mark, seconds in medians["worker"].items()}
    result = {**worker, "medians": medians, "imports_s": shares, "runs": options.runs}
    reporting.write(options.output, "startup", result)


if __name__ == "__main__":
    main()
