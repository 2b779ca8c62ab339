"""Writes the lock files from the `.in` files: `make lock`.

    requirements-torch.txt  torch alone, installed first
    requirements.txt        run time, every other package with the hashes of all its files
    requirements-cuda.txt   what torch's CUDA build needs beside it; never forced on a machine with the CPU build
    requirements-dev.txt    tests and checks
    requirements-play.txt   the page of `make play`, for a virtual environment of its own

torch has one pin and two builds: its CPU wheel may come from a folder that pip is configured with, its CUDA wheel from
the index. The lock carries the hashes of both, so pip-compile runs once with pip's configuration and once without.
torch has a file of its own because pip, when it checks hashes, prefers the index to a folder: see `setup_venv.py`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
_FLAGS = [
    *("--quiet", "--generate-hashes", "--no-header", "--no-annotate", "--strip-extras", "--allow-unsafe"),
    *("--no-emit-index-url", "--no-emit-find-links", "--no-emit-trusted-host"),
]
_HASH = re.compile(r"--hash=(sha256:[0-9a-f]{64})")
_PIN = re.compile(r"([a-z0-9][a-z0-9._-]*)==(\S+)")

# FlashAttention 3 for Ampere and Hopper. It asks for what it is built with, and needs none of it to run.
_FLASH_3 = "fa3-fwd==0.0.3"
_TO_BUILD_FLASH_3 = ("einops", "ninja")

# name -> (version, hashes)
Lock = dict[str, tuple[str, set[str]]]


def compile_lock(source: Path, *, constraint: Path | None = None, only_index: bool = False) -> Lock:
    """Resolve `source`. `only_index` leaves out the folders and indexes of pip's configuration."""
    with tempfile.NamedTemporaryFile(suffix=".txt") as target:
        command = [sys.executable, "-m", "piptools", "compile", *_FLAGS, "-o", target.name, str(source)]
        if constraint is not None:
            command += ["-c", str(constraint)]
        bare = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": ""}
        subprocess.run(command, check=True, env={**os.environ, **(bare if only_index else {})})
        text = Path(target.name).read_text()
    lock: Lock = {}
    for block in re.split(r"\n(?=\S)", text):
        if pin := _PIN.match(block):
            version = pin[2].split("+")[0]
            lock[pin[1]] = (version, set(_HASH.findall(block)))
    return lock


def write_lock(target: Path, lock: Lock, title: str) -> None:
    lines = [f"# {title} Written by `make lock`; install with --require-hashes --no-deps."]
    for name, (version, hashes) in sorted(lock.items()):
        lines.append(f"{name}=={version} \\")
        lines.append(" \\\n".join(f"    --hash={digest}" for digest in sorted(hashes)))
    target.write_text("\n".join(lines) + "\n")
    sys.stdout.write(f"{target.name}: {len(lock)} packages\n")


def main() -> None:
    run_time = compile_lock(HERE / "requirements.in")
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "pins.txt"
        pins.write_text("".join(f"{name}=={version}\n" for name, (version, _) in run_time.items() if name != "torch"))
        torch_only = Path(folder) / "torch.in"
        torch_only.write_text(f"torch=={run_time['torch'][0]}\n{_FLASH_3}\n")
        cuda = compile_lock(torch_only, constraint=pins, only_index=True)
    version, hashes = run_time.pop("torch")
    write_lock(HERE / "requirements-torch.txt", {"torch": (version, hashes | cuda.pop("torch")[1])}, "Both builds.")
    write_lock(HERE / "requirements.txt", run_time, "Run time.")
    write_lock(
        HERE / "requirements-cuda.txt",
        {name: entry for name, entry in cuda.items() if name not in run_time and name not in _TO_BUILD_FLASH_3},
        "Beside torch's CUDA build.",
    )
    write_lock(HERE / "requirements-dev.txt", compile_lock(HERE / "requirements-dev.in"), "Development.")
    write_lock(HERE / "requirements-play.txt", compile_lock(HERE / "requirements-play.in"), "The page of `make play`.")


if __name__ == "__main__":
    main()
