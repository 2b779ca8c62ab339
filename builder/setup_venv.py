"""Makes `.venv` from the lock files: `make setup`. Needs only Python 3.11 and the package registry.

    python3.11 builder/setup_venv.py [--dev]

Hashes are required. Where pip's torch is the CUDA build, the CUDA libraries follow. A second run does nothing while the
lock files are the same.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"


def install(lock: str, *, from_folder: bool = False) -> None:
    """Install one lock file, unless it is the one that was installed last.

    from_folder: download first, without hashes, and install from there with them. When pip checks hashes it prefers a
    file of the index to one of a folder that it is configured with; so torch's CPU wheel would lose to the CUDA build.
    """
    source = ROOT / "builder" / lock
    stamp = VENV / f"{lock}.sha256"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    print(f"installing {lock} into .venv (the first time this takes a minute or two)", flush=True)
    pip = [PYTHON, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    checked = [*pip, "install", "--no-deps", "--require-hashes", "-r", source]
    if from_folder:
        pins = [line.split()[0] for line in source.read_text().splitlines() if line[:1].isalpha()]
        with tempfile.TemporaryDirectory(dir=VENV) as folder:
            subprocess.run([*pip, "download", "--no-deps", "--dest", folder, *pins], check=True)
            subprocess.run([*checked, "--no-index", "--find-links", folder], check=True)
    else:
        subprocess.run(checked, check=True)
    stamp.write_text(digest)


def torch_needs_cuda_libraries() -> bool:
    """Whether the installed torch is the CUDA build: its metadata asks for NVIDIA's libraries."""
    code = "import importlib.metadata as m; print(any('nvidia' in r for r in m.requires('torch') or ()))"
    answer = subprocess.run([PYTHON, "-c", code], check=True, capture_output=True, text=True).stdout
    return sys.platform == "linux" and answer.strip() == "True"


def main() -> int:
    if sys.version_info[:2] != (3, 11):
        print(f"Python 3.11 is needed, this is {sys.version.split()[0]}: run make PYTHON=/path/to/python3.11")
        return 1
    if not PYTHON.exists():
        venv.create(VENV, with_pip=True)
    install("requirements-torch.txt", from_folder=True)
    install("requirements.txt")
    if torch_needs_cuda_libraries():
        install("requirements-cuda.txt")
    if "--dev" in sys.argv[1:]:
        install("requirements-dev.txt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
