"""The loss curves of a training as one picture, drawn with Pillow."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image, ImageDraw

_PANEL = (300, 190)
_MARGIN = 28
_COLUMNS = 3
_INK, _FRAME = (40, 70, 160), (200, 200, 200)


def write(folder: Path, target: Path) -> None:
    """A PNG with a panel for every `*.jsonl` of `folder`: smoothed loss over steps, lowest and highest value named."""
    logs = {path.stem: _points(path) for path in sorted(folder.glob("*.jsonl"))}
    shown = {name: points for name, points in logs.items() if len(points) > 1}
    rows = -(-len(shown) // _COLUMNS)
    sheet = Image.new("RGB", (_PANEL[0] * _COLUMNS, _PANEL[1] * max(rows, 1)), "white")
    for number, (name, points) in enumerate(shown.items()):
        place = (number % _COLUMNS * _PANEL[0], number // _COLUMNS * _PANEL[1])
        _panel(ImageDraw.Draw(sheet), place, name, points)
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(32).save(target, optimize=True)


def _points(path: Path) -> list[tuple[int, float]]:
    """Steps and losses; where a part was taken up again from a checkpoint, the later record of a step counts."""
    kept: dict[int, float] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        kept[record["step"]] = record["loss"]
    return sorted(kept.items())


def _panel(draw: ImageDraw.ImageDraw, place: tuple[int, int], name: str, points: list[tuple[int, float]]) -> None:
    left, top = place[0] + _MARGIN, place[1] + _MARGIN
    width, height = _PANEL[0] - 2 * _MARGIN, _PANEL[1] - 2 * _MARGIN
    draw.rectangle((left, top, left + width, top + height), outline=_FRAME)
    last = points[-1][0]
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    spread = max(high - low, 1e-9)
    line = [(left + width * step / last, top + height * (high - loss) / spread) for step, loss in points]
    draw.line(line, fill=_INK, width=2)
    draw.text((left, place[1] + 8), f"{name}: loss {high:.3f} to {points[-1][1]:.3f}", fill="black")
    draw.text((left, top + height + 4), "0", fill="black")
    draw.text((left + width - 60, top + height + 4), f"{last} steps", fill="black")
