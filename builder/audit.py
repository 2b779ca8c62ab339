"""What is installed is what was locked: `python -m builder.audit`, part of `make check`. Needs no network.

Every package of the lock files is pinned with hashes; every package in .venv is locked at that version; none misses
another that it needs. Writes the bill of materials of the run-time packages to build/sbom.json (CycloneDX 1.6).
Known vulnerabilities are not looked up: that takes a network; `pip-audit -r builder/requirements.txt` does it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

HERE = Path(__file__).parent
SBOM = HERE.parent / "build" / "sbom.json"
LOCKS = ("requirements-torch.txt", "requirements.txt", "requirements-cuda.txt", "requirements-dev.txt")
RUN_TIME = ("requirements-torch.txt", "requirements.txt")
# What venv itself brings.
_BROUGHT = {"pip", "setuptools", "wheel"}
_BLOCK = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.M)


def plain(name: str) -> str:
    """A package's name as the index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(names: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """Name to version over the lock files, and what is wrong with the files."""
    pins: dict[str, str] = {}
    problems: list[str] = []
    for name in names:
        text = (HERE / name).read_text(encoding="utf-8")
        found = _BLOCK.findall(text)
        lines = sum(1 for line in text.splitlines() if line and not line.startswith(("#", " ")))
        if len(found) != lines:
            problems.append(f"{name}: {lines - len(found)} package(s) without a pin and hashes; run make lock")
        for package, version, _ in found:
            if pins.setdefault(plain(package), version) != version:
                problems.append(f"{package}: locked at two versions; run make lock")
    return pins, problems


def installed_problems(pins: dict[str, str]) -> list[str]:
    problems = []
    for found in distributions():
        name, version = plain(found.metadata["Name"]), found.version.split("+")[0]
        if name not in pins and name not in _BROUGHT:
            problems.append(f"{name} {version} is installed but not locked; add it to builder/*.in or remove .venv")
        elif name in pins and pins[name] != version and name not in _BROUGHT:
            problems.append(f"{name}: {version} is installed, {pins[name]} is locked; run make setup-dev")
    return problems


def write_sbom() -> None:
    SBOM.parent.mkdir(exist_ok=True)
    merged = SBOM.with_suffix(".txt")
    merged.write_text("".join((HERE / name).read_text(encoding="utf-8") for name in RUN_TIME), encoding="utf-8")
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", str(merged), "--of", "JSON", "-o", str(SBOM)]
    subprocess.run(command, check=True, capture_output=True)
    merged.unlink()


def main() -> int:
    pins, problems = locked(LOCKS)
    problems += installed_problems(pins)
    check = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    if check.returncode:
        problems += check.stdout.splitlines()
    if problems:
        sys.stderr.write("\n".join(problems) + "\n")
        return 1
    write_sbom()
    sys.stdout.write(f"{len(pins)} packages locked with hashes; the bill of materials is in build/sbom.json\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
