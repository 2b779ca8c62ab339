"""Changes one line of the worker at a time and runs the tests that must notice: `python -m benchmarks.mutants`.

    python -m benchmarks.mutants [--only WORD]

Works in a copy of the files that git knows. Before the first change the named tests must pass as they are. Exits 1
where a change survives, 2 where its text is gone, or where the tests fail without it. Takes about an hour on two cores.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import mutants_engine, mutants_service
from benchmarks.mutants_engine import Mutant

MUTANTS = (*mutants_engine.MUTANTS, *mutants_service.MUTANTS)
ROOT = Path(__file__).resolve().parents[1]
# A change that makes a test wait for ever is noticed too.
TEST_TIMEOUT_S = 300.0
_PASSED, _FAILED = 0, 1  # of pytest


def misplaced(mutant: Mutant, root: Path = ROOT) -> str | None:
    """Why the mutant cannot be applied, or None."""
    path = root / mutant.file
    if not path.is_file():
        return f"{mutant.name}: there is no {mutant.file}"
    count = path.read_text(encoding="utf-8").count(mutant.old)
    return None if count == 1 else f"{mutant.name}: its text is {count} times in {mutant.file}"


def copied(root: Path, target: Path) -> None:
    """Copy what git knows of `root`, and files that it does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)


def run_tests(tests: str, root: Path) -> int:
    """pytest's exit status: 0 passed, 1 failed; 1 too where a test hangs."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", *shlex.split(tests)]
    # Bytecode of the same second and size would be taken for that of the changed file.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command += ["-o", f"timeout={TEST_TIMEOUT_S:.0f}"]
    return subprocess.run(command, cwd=root, env=environment, stdout=subprocess.DEVNULL, check=False).returncode


def fate(mutant: Mutant, root: Path) -> str:
    """`killed`, `survived`, or pytest's exit status where its tests did not run."""
    path = root / mutant.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        status = run_tests(mutant.tests, root)
    finally:
        path.write_text(text, encoding="utf-8")
    return {_FAILED: "killed", _PASSED: "survived"}.get(status, f"not run: pytest exited with {status}")


def judge(mutants: Sequence[Mutant], root: Path) -> int:
    """Prints a line for each mutant; the exit status of the command."""
    for tests in dict.fromkeys(mutant.tests for mutant in mutants):
        if (status := run_tests(tests, root)) != _PASSED:
            print(f"without any change pytest exits with {status}: {tests}")
            return 2
    fates: list[str] = []
    for mutant in mutants:
        began = time.monotonic()
        fates.append(fate(mutant, root))
        print(f"{fates[-1]:<9} {time.monotonic() - began:5.0f} s  {mutant.name} ({mutant.file})", flush=True)
    print(f"{fates.count('killed')} of {len(fates)} killed")
    if any(each.startswith("not run") for each in fates):
        return 2
    return 1 if "survived" in fates else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", metavar="WORD", help="those with this word in their name or file")
    only = parser.parse_args(arguments).only
    chosen = [mutant for mutant in MUTANTS if only in mutant.name or only in mutant.file]
    if problems := [problem for mutant in chosen if (problem := misplaced(mutant)) is not None]:
        print("\n".join(problems), file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copied(ROOT, Path(folder))
        return judge(chosen, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
