"""Seconds of T2V-A14B at full size on the GPU that is here, beside what the chip can do and Diffusers' own pipeline.

    python -m benchmarks.gpu                                  every row at 832x480, 81 frames, 40 steps
    python -m benchmarks.gpu --size 720p --steps 3            1280x720; 3 steps of each expert, the video from them
    python -m benchmarks.gpu --rows exact,turbo,decode        some rows; a row is written as soon as it is measured
    python -m benchmarks.gpu --tiny                           every row on a CPU with tiny classes: does it work?

The weights are random: what a step takes does not depend on their values. What the step cache leaves out does: its rows
say what share of the passes that was (`step_cache_share`), and promise nothing for the real weights. Everything else is
the worker's: its engine, memory plan and techniques, text encoding, decoding, H.264 and a local storage. The decoded
noise is exchanged for a moving picture before it is compressed, because no video is noise. Needs about 1.5 GB of disk
for the LoRAs, no network and no model.

Rows: exact (attention without quantisation), one for each attention backend, quantized (QUANTIZED_COMPUTE=on), compile
(ENABLE_TORCH_COMPILE), cache_balanced and cache_fast (step_cache), turbo (4 steps on fused weights), turbo_lora (LoRAs
put on for the run), decode (81 frames) and encode (a conditioning video) of the VAE. Floor: operations counted by
`worker.request.plan.duration`, at the matrix rates that this run measures with `torch.mm`.

On a machine without network, it carries what it needs as wheels. Where there is one, with the same Python and system:

    pip download --no-deps -d wheels -r builder/requirements-torch.txt
    pip download --no-deps -d wheels -r builder/requirements-cuda.txt
    pip download --no-deps -d wheels -r builder/requirements.txt

and on the machine, in a virtual environment of Python 3.11:

    pip install --no-index --no-deps --find-links wheels -r builder/requirements-torch.txt \
        -r builder/requirements-cuda.txt -r builder/requirements.txt

SageAttention is not among them: copy the folder that `builder/sage.sh` builds, and name it in PYTHONPATH.

Prints a Markdown table and writes `gpu-SIZE-DATE.json` (the tiny one only with --output). Exits 1 where a row failed or
a target was missed, 2 where there is no GPU for it.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # as in the image; read when torch is imported

import torch

from benchmarks import gpu_rates, gpu_report, gpu_videos
from benchmarks.gpu_models import SCALES, Scale
from benchmarks.gpu_report import Line
from benchmarks.gpu_rig import Rig
from benchmarks.gpu_rows import ROWS, Measured, Row, not_to_be_had
from benchmarks.gpu_stock import Stock
from worker.base.errors import SettingsError, WorkerError
from worker.base.settings import Settings
from worker.engine.device import planner_for

RESULTS = Path(__file__).parent / "results"
_STOCK_STEPS = 3  # of each expert; the row's own number where it is given
_FEWEST_STEPS = 3  # of which the step cache may leave one out on each expert


def missing(scale: Scale) -> str | None:
    """What this machine lacks for `scale`; None where it will do."""
    if not scale.is_published:
        return None
    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} is a build without CUDA: install builder/requirements-cuda.txt's build of torch"
        )
    if not torch.cuda.is_available():
        return "torch finds no CUDA GPU: look at nvidia-smi and the driver's version"
    try:
        planner_for(Settings()).plan(scale.spec, scale.shape)
    except (WorkerError, SettingsError) as failure:
        return f"the GPU does not serve it: {failure}"
    return None


def baselines(rig: Rig, rows: Sequence[Row], options: argparse.Namespace) -> dict[str, Measured]:
    """What Diffusers takes, by the kind of row."""
    kinds = dict.fromkeys(row.kind for row in rows)
    steps = _STOCK_STEPS if options.steps is None else options.steps
    found: dict[str, Measured] = {}
    with closing(Stock(rig)) as stock:
        for kind in kinds:
            row = next(each for each in ROWS if each.kind == kind)
            found[kind] = stock.measure(row, steps=steps, repeats=options.repeats)
            print(f"Diffusers, {kind}: {found[kind].video_s:.2f} s", flush=True)
    return found


def measure(row: Row, rig: Rig, options: argparse.Namespace) -> tuple[Measured, bool]:
    """What came of a row, and whether it failed in a way that nobody foresaw: the others are measured all the same."""
    reason = not_to_be_had(row, rig.device)
    if reason is not None:
        return Measured(row.name, reason=reason), False
    try:
        if row.kind in ("decode", "encode"):
            return gpu_videos.stage(row, rig, repeats=options.repeats), False
        return gpu_videos.video(row, rig, steps=options.steps, repeats=options.repeats), False
    except Exception as failure:
        logging.getLogger(__name__).exception("%s failed", row.name)
        return Measured(row.name, reason=f"failed: {type(failure).__name__}: {failure}"), True


def run(rig: Rig, rows: Sequence[Row], options: argparse.Namespace, folder: Path | None) -> bool:
    """Measure and tell. True where no row failed and no target was missed."""
    began = gpu_report.now()
    gpu = torch.cuda.get_device_name(rig.device) if rig.device.type == "cuda" else "a CPU"
    rates = gpu_rates.measure(rig.scale, rig.device)
    print(f"{gpu}, torch {torch.__version__}; {rates.told()}", flush=True)
    stock = baselines(rig, rows, options) if options.stock else {}
    lines: list[Line] = []
    good = True
    for row in rows:
        ours, failed = measure(row, rig, options)
        line = Line(row, ours, stock.get(row.kind), gpu_report.floor_s(row, rig.scale, rates))
        gpu_report.judge(line, rig.scale, gpu)
        lines.append(line)
        good &= not failed and not line.missed
        print(f"{row.name}: " + (ours.reason or f"{ours.video_s:.2f} s"), flush=True)
        if folder is not None:
            gpu_report.write(folder, rig.scale, gpu, rates, lines, began)
    print(f"\n{rig.scale.shape}, {rig.scale.steps} steps, random weights, on {gpu}\n\n{gpu_report.table(lines)}")
    return good


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("480p", "720p"), default="480p")
    parser.add_argument("--rows", default=",".join(row.name for row in ROWS), help="names with commas between")
    parser.add_argument("--steps", type=int, help="measure so many steps of each expert, and tell the video from them")
    parser.add_argument("--repeats", type=int, default=3, help="of turbo, decode and encode; the median counts")
    parser.add_argument("--no-stock", dest="stock", action="store_false", help="without Diffusers' own pipeline")
    parser.add_argument("--tiny", action="store_true", help="tiny classes on the CPU, to see that it works")
    parser.add_argument("--output", type=Path, help="folder of the result (default results; none with --tiny)")
    options = parser.parse_args(arguments)
    names = options.rows.split(",")
    unknown = [name for name in names if name not in {row.name for row in ROWS}]
    if unknown:
        parser.error(f"--rows: no row is called {', '.join(unknown)}; there are {', '.join(row.name for row in ROWS)}")
    options.rows = [row for row in ROWS if row.name in names]
    if options.steps is not None and options.steps < _FEWEST_STEPS:
        parser.error(f"--steps: at least {_FEWEST_STEPS}")
    if options.repeats < 1:
        parser.error("--repeats: at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    scale = SCALES["tiny" if options.tiny else options.size]
    if (lacking := missing(scale)) is not None:
        print(f"nothing was measured: {lacking}", file=sys.stderr)
        return 2
    folder = options.output if options.output is not None else (None if options.tiny else RESULTS)
    with tempfile.TemporaryDirectory(prefix="videogen-gpu-") as home:
        return 0 if run(Rig(scale, Path(home)), options.rows, options, folder) else 1


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("worker.engine.techniques").setLevel(logging.INFO)  # says which attention it took, and why
    sys.exit(main())
