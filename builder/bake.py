"""Puts models into the image while it is built: `python -m builder.bake --models "i2v" --dtype bf16 --into /baked`.

Each model is downloaded, converted as `builder.prepare` does it, and its files are spread over PARTS folders. The
Dockerfile makes one layer of each folder: registries refuse layers over 10 GB, and a host pulls several at once. The
times of the files are set to zero, so that the same weights give the same layer whenever they are baked.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from builder import prepare
from worker.request import CATALOGUE

PARTS = 8
PART_BYTES = 10_000_000_000  # GitHub's registry takes no larger layer
NONE = "none"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when the folders exist, 1 when a model could not be downloaded or does not fit."""
    options = _parser().parse_args(arguments)
    for number in range(PARTS):
        (options.into / str(number)).mkdir(parents=True, exist_ok=True)
    names = [] if options.models == NONE else options.models.replace(",", " ").split()
    if unknown := sorted(set(names) - {spec.key for spec in CATALOGUE}):
        print(f"not baked: no model {', '.join(unknown)}; write none, or any of i2v t2v 5b", file=sys.stderr)
        return 1
    # Beside the parts, on the same file system: spreading moves the files and copies none.
    with tempfile.TemporaryDirectory(dir=options.into) as cache:
        os.environ["MODEL_CACHE_DIR"] = cache
        for name in names:
            if prepare.main(["--model", name, "--dtype", options.dtype, "--replace"]) != 0:
                return 1
        try:
            spread(Path(cache), options.into)
        except ValueError as failure:
            print(f"not baked: {failure}", file=sys.stderr)
            return 1
    return 0


def spread(source: Path, target: Path, *, parts: int = PARTS, part_bytes: int = PART_BYTES) -> None:
    """Move what `source` holds to `target`/0, 1, ..., the largest files first, each where it still fits.

    Files that are one (hard links, such as a text encoder that two models share) stay one, in one part. Raises
    ValueError, with nothing moved, where they do not fit.
    """
    free = [part_bytes] * parts
    places: list[tuple[list[Path], int]] = []
    for files in sorted(_by_content(source), key=lambda files: (-files[0].stat().st_size, files[0])):
        size = files[0].stat().st_size
        number = next((number for number, room in enumerate(free) if room >= size), None)
        if number is None:
            total = sum(group[0].stat().st_size for group in _by_content(source))
            raise ValueError(f"{total / 1e9:.1f} GB do not fit into {parts} layers of {part_bytes / 1e9:g} GB")
        free[number] -= size
        places.append((files, number))
    for files, number in places:
        for file in files:
            destination = target / str(number) / file.relative_to(source)
            destination.parent.mkdir(parents=True, exist_ok=True)
            file.rename(destination)
    for folder in (target / str(number) for number in range(parts)):
        _settle(folder)


def _by_content(source: Path) -> Iterable[list[Path]]:
    """The files that a worker reads, those of one inode together; locks and empty folders are left behind."""
    groups: dict[int, list[Path]] = {}
    for path in sorted(source.rglob("*")):
        if path.is_file() and ".locks" not in path.parts:
            groups.setdefault(path.stat().st_ino, []).append(path)
    return groups.values()


def _settle(folder: Path) -> None:
    """Readable by every user, at a time that is always the same."""
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.utime(path, (0, 0))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m builder.bake", description="Put models into the image.")
    parser.add_argument("--models", default=NONE, help="none, or any of i2v t2v 5b with spaces between")
    parser.add_argument("--dtype", default="bf16", choices=("bf16", "fp8"), help="what the experts are stored as")
    parser.add_argument("--into", type=Path, required=True, help="the folder that receives the parts")
    return parser


if __name__ == "__main__":
    sys.exit(main())
