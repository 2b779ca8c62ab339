"""What `benchmarks.gpu` reports: each row beside the floor, Diffusers' pipeline and its targets; a table, and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_rates, reporting
from benchmarks.gpu_models import Scale
from benchmarks.gpu_rates import Rates
from benchmarks.gpu_rows import Measured, Row, request
from worker.request.plan import duration

GB = 1e9
WITHIN_FLOOR = 1.25
# Seconds on an H200 at most; `generate` is the denoising alone, `video` the whole request, or the stage of the row.
TARGETS_S: Mapping[tuple[str, str], tuple[str, float]] = {
    ("480p", "exact"): ("generate", 213.0),
    ("480p", "turbo"): ("video", 13.0),
    ("720p", "turbo"): ("video", 42.0),
    ("720p", "decode"): ("video", 4.0),
}
_TARGET_GPU = "H200"
_HEADS = (
    "row",
    "attention",
    "a step, s",
    "video, s",
    "floor, s",
    "x floor",
    "Diffusers, s",
    "x faster",
    "peak, GB",
    "targets",
)


@dataclass
class Line:
    """A row, what came of it, and what it is held to. `floor_s`: of the denoising, or of the row's stage."""

    row: Row
    ours: Measured
    stock: Measured | None
    floor_s: float | None
    verdicts: list[str] = field(default_factory=list)
    missed: bool = False

    @property
    def counts(self) -> bool:
        return self.ours.reason is None and self.ours.video_s is not None

    @property
    def floor_ratio(self) -> float | None:
        """How many times the floor it took; of the same work, denoising or stage."""
        ours_s = self.ours.video_s if self.ours.generate_s is None else self.ours.generate_s
        return ours_s / self.floor_s if self.counts and ours_s is not None and self.floor_s is not None else None

    @property
    def stock_ratio(self) -> float | None:
        if not self.counts or self.stock is None or self.stock.video_s is None or self.ours.video_s is None:
            return None
        return self.stock.video_s / self.ours.video_s


def floor_s(row: Row, scale: Scale, rates: Rates) -> float | None:
    """The least time of a row's work. The step cache is held to the floor of all passes, and may beat it."""
    if row.kind == "decode":
        return gpu_rates.decode_floor_s(scale, rates)
    if row.kind == "encode":
        return gpu_rates.encode_floor_s(scale, rates)
    passes = duration.forwards(request(row, scale, take=0), row.spec(scale))
    return gpu_rates.denoise_floor_s(scale, rates, forwards=passes, quantized=row.is_quantized)


def judge(line: Line, scale: Scale, gpu: str) -> None:
    """Write the verdicts of a line: met, or missed and by how much. The tiny size has no targets."""
    if not scale.is_published or not line.counts:
        return
    target = TARGETS_S.get((scale.name, line.row.name))
    if target is not None:
        what, limit_s = target
        found_s = line.ours.generate_s if what == "generate" else line.ours.video_s
        if _TARGET_GPU not in gpu:
            line.verdicts.append(f"{what} <= {limit_s:g} s is for an {_TARGET_GPU}")
        else:
            _verdict(line, f"{what} <= {limit_s:g} s", found_s, limit_s, " s")
    if line.row.name == "exact":
        _verdict(line, f"<= {WITHIN_FLOOR:g} x floor", line.floor_ratio, WITHIN_FLOOR, " x")
    if line.stock is not None:
        slower = None if line.stock_ratio is None else 1 / line.stock_ratio
        _verdict(line, "faster than Diffusers", slower, 1.0, " x its time")


def _verdict(line: Line, target: str, found: float | None, limit: float, unit: str) -> None:
    if found is None:
        return
    if found <= limit:
        line.verdicts.append(f"{target}: met")
    else:
        line.missed = True
        line.verdicts.append(f"{target}: missed by {found - limit:.2f}{unit}")


def table(lines: Sequence[Line]) -> str:
    """Markdown, and below it why rows have no figures."""
    shown = reporting.table(_HEADS, [_cells(line) for line in lines if line.counts], words=2)
    reasons = [f"{line.row.name}: {line.ours.reason}" for line in lines if line.ours.reason is not None]
    return "\n".join([shown, *(["", "Not measured:", *reasons] if reasons else [])])


def _cells(line: Line) -> tuple[str, ...]:
    ours, stock = line.ours, line.stock
    return (
        line.row.name + _left_out(ours),
        str(ours.parameters.get("attention_backend", "")),
        _number(ours.step_s, 3),
        _number(ours.video_s, 2) + _from(ours),
        _number(line.floor_s, 2),
        _number(line.floor_ratio, 2),
        "" if stock is None else _number(stock.video_s, 2) + _from(stock),
        _number(line.stock_ratio, 2),
        _number(None if ours.peak_bytes is None else ours.peak_bytes / GB, 1),
        "; ".join(line.verdicts),
    )


def _left_out(ours: Measured) -> str:
    """Of a step cache: with other weights it is another share."""
    share = ours.parameters.get("step_cache_share")
    return "" if share is None else f" ({share:.0%} of passes left out)"


def _from(measured: Measured) -> str:
    return "" if measured.extrapolated is None else f" (from 2 x {measured.extrapolated} steps)"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def write(folder: Path, scale: Scale, gpu: str, rates: Rates, lines: Sequence[Line], began: datetime) -> Path:
    """`gpu-SIZE-DATE.json` in `folder`, written again after every row: a run that is cut off leaves the rows before."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"gpu-{scale.name}-{began:%Y-%m-%dT%H%MZ}.json"
    result = {
        "benchmark": "gpu",
        "date": began.date().isoformat(),
        "gpu": gpu,
        "machine": {"cuda": torch.version.cuda, **reporting.machine("torch", "diffusers", "transformers", "peft")},
        "weights": "random; what is compressed is a moving picture in the place of the decoded noise",
        "case": {"width": scale.width, "height": scale.height, "num_frames": scale.num_frames, "steps": scale.steps},
        "rates_flop_s": rates.as_dict(),
        "rows": [_as_dict(line) for line in lines],
    }
    target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return target


def _as_dict(line: Line) -> dict[str, Any]:
    return {
        **asdict(line.ours),
        "floor_s": line.floor_s,
        "floor_ratio": line.floor_ratio,
        "stock": None if line.stock is None else asdict(line.stock),
        "stock_ratio": line.stock_ratio,
        "targets": line.verdicts,
    }


def now() -> datetime:
    return datetime.now(UTC)
