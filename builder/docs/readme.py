"""The generated parts of README.md, each a function that returns Markdown."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from builder.docs import costs
from builder.docs.markdown import table
from worker.base.settings import Settings, variables_of
from worker.cli.plans import table as memory_table
from worker.request import CATALOGUE, Mode
from worker.request.catalogue import ModelName, find
from worker.request.plan.gpus import GPUS
from worker.request.prompt_words import CAMERA_MOTIONS
from worker.request.settle import PRESETS

ROOT = Path(__file__).resolve().parents[2]
# Folder or file -> where a reader begins.
ROOMS: Mapping[str, str] = {
    "handler.py": "main",
    "worker/cli": "__main__.py",
    "worker/start.py": "build_worker",
    "worker/doctor": "checks.py",
    "worker/jobs": "flow.py",
    "worker/training": "dataset.py",
    "worker/delivery": "journal.py",
    "worker/engine": "engine.py",
    "worker/media": "inputs.py",
    "worker/weights": "ensure.py",
    "worker/request": "parse.py",
    "worker/net": "opener.py",
    "worker/base": "errors.py",
    "client/src/videogen_client": "client.py",
    "builder": "prepare.py",
    "benchmarks": "gpu.py",
    "training": "train_demo.py",
}
_USES = {
    "draft": "a first look",
    "standard": "the default values",
    "high": "best quality",
    "ultra": "maximum quality, at twice the steps of standard",
    "turbo": "4 steps with distilled weights, without guidance",
}
# The GPUs of README.md, one of each memory class, under the names of RunPod's prices; docs/ has all of them.
_GPUS = ("RTX 4090", "L40S", "A100 80GB", "H100 80GB", "H200")
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
    """The modes of `worker.engine.modes.MODES`, read from the sources beside it: importing it would load torch."""
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "worker/engine/modes").glob("*.py"))
    return frozenset(name for text in sources for name in re.findall(r"^    name: Mode = \"(\w+)\"$", text, re.M))


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
    """How the A14B models are placed on one GPU of each class, and what two presets take and cost there, estimated."""
    plans = {cells[1].strip(): cells for line in _plans() if len(cells := line.split("|")) > 4}
    standard, turbo = "a14b 832x480x81, `standard`", "a14b 832x480x81, `turbo`"
    rows = []
    for gpu in GPUS:
        if gpu.name in _GPUS:
            price, (_, _, vram, small, large, *_) = costs.USD_PER_HOUR[gpu.name], plans[gpu.name]
            spans = (costs.cell(gpu, costs.SHOWN[shown], price) for shown in (standard, turbo))
            rows.append((gpu.name, f"{vram.strip()} GiB", small.strip(), large.strip(), f"${price:.2f}", *spans))
    heads = ("GPU", "VRAM", "832x480, 81 frames", "1280x720, 81 frames", "USD an hour", "50 steps", "`turbo`")
    return table(heads, rows)


def _plans() -> list[str]:
    """The table of `python -m worker.cli plans` under default settings, whatever the environment of this process."""
    return memory_table(Settings.model_construct()).splitlines()


def rooms() -> str:
    """A line for each room, from the top to the bottom of the imports, with the file to begin with."""
    return table(
        ("Room", "What it is for", "Begin with"),
        [(f"`{name}`", _promise(ROOT / name), f"`{first}`") for name, first in ROOMS.items()],
    )


def _promise(path: Path) -> str:
    """The first sentence of a module's docstring; of a package's, that of its `__init__.py`."""
    source = path / "__init__.py" if path.is_dir() else path
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    first = " ".join(text.split("\n\n")[0].split())
    return re.split(r"\.(?= |$)", first)[0].rstrip(":")
