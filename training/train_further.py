"""Trains the shipped experts further on a GPU, against the clock.

    python -m training.train_further --out FOLDER --seconds 235

Every part is a process of its own with its own clock: clips are drawn on all cores while the experts learn, both
experts learn at the same time from the clips that are there, then the LoRAs of `turbo` and of the style do. A part
that fails loses none of the others. FOLDER gets `experts.tar` and `loras.tar` as soon as they are made, `curves.tar`
with the losses, and `log.jsonl`. `--install FOLDER` puts what is there in place of the shipped weights.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from pathlib import Path

from training.further import ALL, LOADED, LORAS, SIDES, WEIGHTS, Job, draw, expert, loras

_ENDLESS = 1_000_000


def _part(job: Job, name: str) -> int:
    """A process of a run: one part, and what went wrong in it."""
    try:
        if name == "draw":
            draw(job)
            return 0
        import torch

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(1)
        torch.set_float32_matmul_precision("high")
        torch.zeros(1, device=device)
        job.say(name, "loaded", device=str(device))
        expert(job, name, device) if name in SIDES else loras(job, name, device)
    except Exception as error:  # noqa: BLE001 - whatever it is, the log says it and the other parts go on
        job.say(name, "failed", error=f"{type(error).__name__}: {error}", trace=traceback.format_exc()[-1500:])
        return 1
    return 0


def packed(target: Path, found: dict[str, Path]) -> None:
    part = target.with_suffix(".part")
    with tarfile.open(part, "w") as archive:
        for name, path in found.items():
            archive.add(path, name)
    part.replace(target)


def conduct(job: Job, options: list[str]) -> int:
    """Start every part, pack what they make, and end all in time."""
    # Drawing takes and gives back large arrays all the time: the allocator keeps them.
    kept = {f"MALLOC_{name}_": str(2**30) for name in ("MMAP_THRESHOLD", "TRIM_THRESHOLD")}
    environment = {**os.environ, **kept, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    common = [*options, "--folder", str(job.folder), "--began", str(job.began)]
    command = [sys.executable, "-m", "training.train_further", *common, "--part"]
    waiting = ["draw", *SIDES, *LORAS]
    parts: dict[str, subprocess.Popen[bytes]] = {}
    seen: set[str] = set()
    while job.left(ALL) > 0 and (waiting or any(part.poll() is None for part in parts.values())):
        for name in [name for name in waiting if name not in LORAS or job.left(LOADED) < 0]:
            parts[name] = subprocess.Popen([*command, name], env=environment)
            waiting.remove(name)
        time.sleep(0.2)
        _pack(job, seen)
    for part in parts.values():
        part.kill()
    _pack(job, seen)
    packed(job.out / "curves.tar", {path.name: path for path in sorted(job.folder.glob("*.jsonl"))})
    job.say("all", "done", ended={name: part.wait() for name, part in parts.items()}, packed=sorted(seen))
    shutil.rmtree(job.folder, ignore_errors=True)
    return 0 if "expert-high" in seen and "expert-low" in seen else 1


def _pack(job: Job, seen: set[str]) -> None:
    """Write the archives again where something has been made since."""
    made = [job.folder / f"expert-{side}" for side in SIDES if (job.folder / f"expert-{side}").exists()]
    learned = sorted((job.folder / "loras").glob("*.safetensors"))
    if {path.name for path in (*made, *learned)} <= seen:
        return
    seen |= {path.name for path in (*made, *learned)}
    packed(job.out / "experts.tar", {f"experts/{path.name.removeprefix('expert-')}": path for path in made})
    packed(job.out / "loras.tar", {f"loras/{path.name}": path for path in learned})


def install(folder: Path) -> None:
    """Put what a run made in place of the shipped weights, and its loss curves into the docs."""
    from training import curves

    for name in ("experts.tar", "loras.tar"):
        with tarfile.open(folder / name) as archive:
            archive.extractall(WEIGHTS, filter="data")
    with tempfile.TemporaryDirectory() as losses:
        with tarfile.open(folder / "curves.tar") as archive:
            archive.extractall(losses, filter="data")
        curves.write(Path(losses), Path("docs/images/demo-training-further.png"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/further"))
    parser.add_argument("--seconds", type=float, default=235, help="of everything")
    parser.add_argument("--clips", type=int, default=16_000, help="the most that are drawn")
    parser.add_argument("--chunk", type=int, default=64, help="clips that are written at once")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--taught", type=int, default=256, help="clips that the teacher of turbo makes")
    parser.add_argument("--steps", type=int, default=_ENDLESS, help="the most of each part; the clock ends it before")
    parser.add_argument("--install", type=Path, metavar="FOLDER")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, default=time.time(), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.install is not None:
        install(chosen.install)
        return 0
    chosen.out.mkdir(parents=True, exist_ok=True)
    folder = chosen.folder or Path(tempfile.mkdtemp())
    fields = {name: getattr(chosen, name) for name in Job.__dataclass_fields__ if name != "folder"}
    job = Job(folder=folder, **fields)
    return _part(job, chosen.part) if chosen.part else conduct(job, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
