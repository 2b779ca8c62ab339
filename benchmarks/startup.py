"""How long `python handler.py` takes from start to "ready" on the demo model, and which imports it spends it on.

    python -m benchmarks.startup [--runs 5]

Each run is a process of its own (`-X importtime`). Prints medians and writes a
dated JSON beside the other results. Seconds on a shared machine mean little: compare the shares.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
WATCHED = ("torch", "diffusers", "transformers", "runpod", "boto3", "pydantic", "worker.engine", "worker.storage")
_IMPORT = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \| ( *)(\S+)")


def one_run(home: Path) -> tuple[float, dict[str, float]]:
    """Seconds until the worker is ready, and the cumulative seconds of the watched imports."""
    environment = {**os.environ, "MODEL_PROFILE": "demo", "STATE_DIR": str(home), "OUTPUT_DIR": str(home)}
    command = [sys.executable, "-X", "importtime", str(ROOT / "handler.py"), "--test_input", "{}"]
    began = time.perf_counter()
    ready = None
    imports: dict[str, float] = {}
    with subprocess.Popen(
        command, cwd=home, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stderr or ():
            if found := _IMPORT.match(line):
                if found[4] in WATCHED:
                    imports[found[4]] = int(found[2]) / 1e6
            elif " ready on " in line and ready is None:
                ready = time.perf_counter() - began
    if ready is None:
        raise RuntimeError("the handler never said that it is ready")
    return ready, imports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        runs = [one_run(Path(home)) for _ in range(options.runs + 1)][1:]  # the first warms the page cache
    ready = statistics.median(seconds for seconds, _ in runs)
    shares = {name: statistics.median(imports.get(name, 0.0) for _, imports in runs) for name in WATCHED}
    print(f"start to ready, median of {options.runs}: {ready:.2f} s")
    for name, seconds in sorted(shares.items(), key=lambda item: -item[1]):
        print(f"  import {name:<16} {seconds:6.2f} s  {seconds / ready:5.0%}")
    options.output.mkdir(parents=True, exist_ok=True)
    target = options.output / f"startup-{datetime.now(UTC):%Y-%m-%d}.json"
    facts = {"cores": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine()}
    target.write_text(
        json.dumps({"ready_s": ready, "imports_s": shares, "runs": options.runs, **facts}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
