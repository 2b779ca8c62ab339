"""docs/training.md: what training the A14B models takes on cards of 80, 48 and 24 GB, from worker/training/plan.py."""

from __future__ import annotations

from builder.docs.markdown import table
from worker.base.errors import InvalidRequest
from worker.request.plan import from_name
from worker.request.plan.duration import Span
from worker.request.training import TrainingRequest, parse_training
from worker.training.plan import choose, estimated_s

_CARDS = ("H100", "L40S", "RTX 4090")
_CLIPS = (("720p", 81), ("480p", 81), ("480p", 49), ("480p", 17), ("480p", 5), ("480p", 1))


def plans() -> str:
    """One row a size of the clips, one column a card: the arrangement, its peak and the hours of a whole training."""
    heads = ["Clips", *(f"{name}, {from_name(name).vram_bytes / 1024**3:.0f} GiB" for name in _CARDS)]
    rows = []
    for resolution, frames in _CLIPS:
        wanted = _request(resolution, frames)
        rows.append([f"{wanted.width}x{wanted.height}x{frames}", *(_cell(wanted, name) for name in _CARDS)])
    return table(heads, rows)


def _request(resolution: str, frames: int) -> TrainingRequest:
    train = {"training_data_url": "https://-", "resolution": resolution, "num_frames": frames}
    return parse_training({"train": train}, default_job_id="docs").train


def _cell(wanted: TrainingRequest, name: str) -> str:
    gpu = from_name(name)
    try:
        plan = choose(wanted, gpu)
    except InvalidRequest:
        return "does not fit"
    seconds = estimated_s(wanted, plan, gpu)
    peak = (plan.estimated_peak_bytes or 0) / 1e9
    return f"{plan}: {peak:.0f} GB" + ("" if seconds is None else f", {_hours(seconds)}")


def _hours(seconds: Span) -> str:
    low, high = seconds.low / 3600, seconds.high / 3600
    return f"{low:.0f} to {high:.0f} h" if low >= 10 else f"{low:.1f} to {high:.1f} h"
