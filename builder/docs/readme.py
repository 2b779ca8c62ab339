"""The generated parts of README.md, each a function that answers Markdown."""

from __future__ import annotations

import ast
import configparser
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from builder.docs.markdown import table
from worker.memory.__main__ import table as memory_table
from worker.models import CATALOGUE, Mode, ModelName, find
from worker.prompt import CAMERA_MOTIONS
from worker.request import PRESETS
from worker.settings import Settings, variables_of

ROOT = Path(__file__).resolve().parents[2]
_USES = {
    "draft": "a first look",
    "standard": "the default values",
    "high": "best quality",
    "ultra": "maximum quality, at twice the steps of standard",
    "turbo": "4 steps with distilled weights, without guidance",
}
# The table's left edge, GPU, VRAM and the two sizes of the A14B models; docs/memory-plan.md has the rest.
_GPU_COLUMNS = 5
# What makes a request one of each mode.
SENT: Mapping[Mode, str] = {
    "text_to_video": "`prompt` alone",
    "image_to_video": "`reference_image_url`",
    "first_last_frame": "`reference_image_url` and `last_image_url`",
    "video_to_video": "`reference_video_url`",
}


def served() -> str:
    """Which mode each model serves: what is in its catalogue entry and in the registry of modes."""
    names, registered = get_args(ModelName), registered_modes()
    rows = []
    for mode in get_args(Mode):
        specs = [find(name, mode) if mode in registered else None for name in names]
        rows.append((f"`{mode}`", SENT[mode], *("no" if spec is None else "yes" for spec in specs)))
    turbo = [any(spec.turbo for spec in CATALOGUE if spec.name == name) for name in names]
    rows.append(("`turbo`", "`quality_preset`", *("yes" if served else "no" for served in turbo)))
    text = table(("Mode", "Sent as", *(f"`{name}`" for name in names)), rows)
    idle = [f"`{variables_of(name)[0]}`" for name in Settings.model_fields if name in not_carried_out()]
    return f"{text}\n\nRead and checked at start, but without effect yet: {', '.join(idle)}." if idle else text


def not_carried_out() -> frozenset[str]:
    """The settings that are read and checked at start and that no code looks at afterwards."""
    sources = [ROOT / "handler.py", *(ROOT / "worker").rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    return frozenset(name for name in Settings.model_fields if not re.search(rf"\.{name}\b", text))


def registered_modes() -> frozenset[str]:
    """The modes of `worker.modes.MODES`, read from its source: importing it would load torch.

    Each mode is a file of its name, which the registry imports.
    """
    tree = ast.parse((ROOT / "worker" / "modes" / "__init__.py").read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return frozenset(mode for mode in get_args(Mode) if f"worker.modes.{mode}" in imported)


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
    lines = memory_table(Settings.model_construct()).strip().splitlines()
    return "\n".join("|".join(line.split("|")[:_GPU_COLUMNS]) + "|" for line in lines)


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
    layered = re.findall(r"\w+", rules["importlinter:contract:layers"]["layers"])
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
