"""The generated parts of README.md, each a function that answers Markdown."""

from __future__ import annotations

import ast
import configparser
import re
from collections.abc import Sequence
from pathlib import Path

from builder.docs.markdown import table
from worker.memory.__main__ import table as memory_table
from worker.prompt import CAMERA_MOTIONS
from worker.request import PRESETS
from worker.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
_USES = {
    "draft": "a first look",
    "standard": "the default values",
    "high": "best quality",
    "ultra": "maximum quality, at twice the steps of standard",
    "turbo": "4 steps with distilled weights, without guidance",
}


def presets() -> str:
    rows = [
        (f"`{name}`", str(steps), f"{guidance:.1f}", _USES.get(name, "")) for name, (steps, guidance) in PRESETS.items()
    ]
    return table(("`quality_preset`", "Steps", "Guidance", "For"), rows)


def camera_motions() -> str:
    return table(
        ("`camera_motion`", "What is added to the prompt"),
        [(f"`{name}`", phrase) for name, phrase in CAMERA_MOTIONS.items()],
    )


def gpus() -> str:
    """The plans of `python -m worker.memory` under default settings, whatever the environment of this process."""
    return memory_table(Settings.model_construct()).rstrip("\n")


def files() -> str:
    """A line for each file of the worker, from its docstring, in the order of the layers that import-linter holds."""
    rows: list[Sequence[str]] = [("`handler.py`", _promise(ROOT / "handler.py"))]
    for name in _in_order():
        rows.append((f"`worker/{name}`", _promise(ROOT / "worker" / name)))
    for folder in ("builder", "benchmarks"):
        for path in sorted([*(ROOT / folder).glob("*.py"), *(ROOT / folder).glob("*/__init__.py")]):
            if path.parent != ROOT / folder:
                rows.append((f"`{folder}/{path.parent.name}/`", _promise(path)))
            elif path.name != "__init__.py":
                rows.append((f"`{folder}/{path.name}`", _promise(path)))
    return table(("File", "What it promises"), rows)


def _in_order() -> list[str]:
    """The modules and packages of worker/, from the top layer to the bottom; those in no layer come last."""
    rules = configparser.ConfigParser()
    rules.read(ROOT / ".importlinter", encoding="utf-8")
    layered = re.findall(r"worker\.(\w+)", rules["importlinter:contract:layers"]["layers"])
    there = {path.stem: path.name for path in (ROOT / "worker").glob("*.py") if path.name != "__init__.py"}
    there |= {path.parent.name: f"{path.parent.name}/" for path in (ROOT / "worker").glob("*/__init__.py")}
    names = [name for name in layered if name in there]
    return [there[name] for name in [*names, *sorted(set(there) - set(names))]]


def _promise(path: Path) -> str:
    """The first sentence of a module's docstring; of a package's, that of its `__init__.py`."""
    source = path / "__init__.py" if path.is_dir() else path
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    first = " ".join(text.split("\n\n")[0].split())
    return re.split(r"\.(?= |$)", first)[0].rstrip(":")
