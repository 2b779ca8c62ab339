"""Makes `.venv` from the lock files: `make setup`. Needs only Python 3.11 and the package registry.

    python3.11 builder/setup_venv.py [--dev | --play]

Hashes are required. Where pip's torch is the CUDA build, the CUDA libraries follow. A second run does nothing while the
lock files are the same. The command `videogen` comes with it. --play makes `.venv-play` too: gradio asks for versions
that the worker cannot take.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import threading
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PLAY = ROOT / ".venv-play"
PYTHON = VENV / "bin" / "python"
SITE_PACKAGES = VENV / "lib" / "python3.11" / "site-packages"
PACKAGES = "lib/python3*/site-packages/*.dist-info"


def install(lock: str, *, into: Path | None = None, from_folder: bool = False) -> None:
    """Install one lock file into .venv or another folder, unless it is the one that was installed last.

    from_folder: download first, without hashes, and install from there with them. When pip checks hashes it prefers a
    file of the index to one of a folder that it is configured with; so torch's CPU wheel would lose to the CUDA build.
    """
    folder = VENV if into is None else into
    source = ROOT / "builder" / lock
    stamp = folder / f"{lock}.sha256"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    pins = [line.split()[0] for line in source.read_text().splitlines() if line[:1].isalpha()]
    checked = ["install", "--no-deps", "--require-hashes", "-r", str(source)]
    if from_folder:
        with tempfile.TemporaryDirectory(dir=folder) as fetched:
            pip(folder, lock, len(pins), ["download", "--no-deps", "--dest", fetched, *pins])
            pip(folder, lock, len(pins), [*checked, "--no-index", "--find-links", fetched])
    else:
        pip(folder, lock, len(pins), checked)
    stamp.write_text(digest)


def pip(folder: Path, lock: str, packages: int, arguments: list[str]) -> None:
    """Run pip, and say how many packages of `lock` it has. Ends the process with what pip said where it fails."""
    verb, *options = arguments
    command = [
        folder / "bin" / "python",
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        verb,
        "--progress-bar",
        "off",
        *options,
    ]
    began, collected, said = time.monotonic(), 0, []
    installing, over = threading.Event(), threading.Event()

    def count() -> None:
        """pip says nothing while it puts files there; each package leaves a folder when it is done."""
        installing.wait()
        before = len(list(folder.glob(PACKAGES)))
        while not over.wait(0.5):
            done = len(list(folder.glob(PACKAGES))) - before
            show(f"{lock}: putting packages into {folder.name}, {done} of {packages}")

    counter = threading.Thread(target=count, daemon=True)
    counter.start()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            said.append(line)
            if line.startswith(("Collecting ", "Processing ")):
                collected += 1
                name = re.split(r"==|-\d", line.split()[1].rpartition("/")[2])[0]
                show(f"{lock}: looking for package {collected} of {packages}, {name}")
            elif line.startswith("Installing collected packages"):
                installing.set()
    over.set()
    installing.set()
    counter.join()
    if process.returncode:
        sys.exit("".join(["\n", *said, f"pip could not install builder/{lock}: what it said is above"]))
    show(f"{lock}: done in {time.monotonic() - began:.0f} s", last=True)


def show(text: str, *, last: bool = False) -> None:
    """One line that changes at a terminal; elsewhere the last state of it alone."""
    if sys.stdout.isatty():
        print(f"\r\x1b[K{text}", end="\n" if last else "", flush=True)
    elif last:
        print(text, flush=True)


def write_scripts() -> None:
    """Write the commands of pyproject.toml into .venv/bin, and where their packages are, as an editable install would
    with nothing to build.
    """
    import tomllib  # Python 3.11 has it; an older one gets as far as `main`

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    for name, entry in scripts.items():
        module, _, function = entry.partition(":")
        script = PYTHON.with_name(name)
        script.write_text(
            f"#!{PYTHON}\nimport sys\n\nfrom {module} import {function}\n\nsys.exit({function}())\n",
            encoding="utf-8",
        )
        script.chmod(0o755)
    (SITE_PACKAGES / "videogen.pth").write_text(f"{ROOT}\n{ROOT / 'client' / 'src'}\n", encoding="utf-8")


def torch_needs_cuda_libraries() -> bool:
    """Whether the installed torch is the CUDA build: its metadata asks for NVIDIA's libraries."""
    code = "import importlib.metadata as m; print(any('nvidia' in r for r in m.requires('torch') or ()))"
    answer = subprocess.run([PYTHON, "-c", code], check=True, capture_output=True, text=True).stdout
    return sys.platform == "linux" and answer.strip() == "True"


def main() -> int:
    parser = argparse.ArgumentParser(description="Make .venv from the lock files.")
    parser.add_argument("--dev", action="store_true", help="with what tests and checks need")
    parser.add_argument("--play", action="store_true", help="with .venv-play, for the page of `make play`")
    options = parser.parse_args()
    if sys.version_info[:2] != (3, 11):
        print(f"Python 3.11 is needed, this is {sys.version.split()[0]}: run make PYTHON=/path/to/python3.11")
        return 1
    if not PYTHON.exists():
        print("The first time this installs the locked packages into .venv, which takes a minute or two.", flush=True)
        venv.create(VENV, with_pip=True)
    install("requirements-torch.txt", from_folder=True)
    install("requirements.txt")
    if torch_needs_cuda_libraries():
        install("requirements-cuda.txt")
        subprocess.run([PYTHON, ROOT / "builder" / "flash3.py", SITE_PACKAGES], check=True)
    if options.dev:
        install("requirements-dev.txt")
    write_scripts()
    if options.play:
        if not (PLAY / "bin" / "python").exists():
            venv.create(PLAY, with_pip=True)
        install("requirements-play.txt", into=PLAY)
    return 0


if __name__ == "__main__":
    sys.exit(main())
