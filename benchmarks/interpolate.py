"""How like the frames of `target_fps` are to true ones, beside repeated and blended frames; and what they cost.

    python -m benchmarks.interpolate           8 clips at twice and four times the rate; seconds at full size
    python -m benchmarks.interpolate --quick   two short clips, to see that it works

Every second or fourth frame of a clip is given, the others are held out: SSIM of what is made in their place. The clips
are those that the demo model is trained on (`training`), with true motion of objects and cameras, and the textured pan
of `benchmarks.encode_presets`. Prints Markdown tables and writes `benchmarks/results/interpolate-DATE.json`; ends with
status 1 where interpolation does not beat both others.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import encode_presets, reporting
from benchmarks.reporting import RESULTS
from worker.media import interpolate

PACKAGES = ("numpy", "imageio-ffmpeg")
FPS = 15  # a multiple of it is a rate that may be asked for, up to four times
WAYS = ("repeated", "blended", "motion")
RATIOS = (2, 4)
_BLOCK = 8
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_LUMA = np.array([0.2126, 0.7152, 0.0722])


@dataclass(frozen=True)
class Likeness:
    """SSIM of each way, against the frames that were held out."""

    clip: str
    ratio: int
    repeated: float
    blended: float
    motion: float


@dataclass(frozen=True)
class Cost:
    """Seconds to interpolate a clip to `target`, and of all cores together."""

    width: int
    height: int
    num_frames: int
    target: int
    workers: int
    seconds: float
    cpu_seconds: float


def likeness(true: np.ndarray, ratio: int) -> dict[str, float]:
    """SSIM of each way of making the frames between every `ratio`-th of `true`, uint8 [frames, height, width, 3]."""
    given = true[::ratio]
    moved, _ = interpolate.at_rate(iter(given), num_frames=len(given), fps=FPS, target=ratio * FPS, check=lambda: None)
    made = list(moved)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(len(true)):
        before, between = divmod(number, ratio)
        if between == 0 or before + 1 == len(given):
            continue
        share = between / ratio
        blended = given[before] * (1 - share) + given[before + 1] * share
        for way, frame in zip(WAYS, (given[before], blended, made[number]), strict=True):
            found[way].append(ssim(true[number], frame))
    return {way: statistics.fmean(values) for way, values in found.items()}


def ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Mean structural similarity of the luma of two frames [height, width, 3], in blocks of 8 by 8."""
    a, b = (_blocks(frame.astype(np.float64) @ _LUMA) for frame in (one, other))
    mean_a, mean_b = a.mean(1), b.mean(1)
    covariance = (a * b).mean(1) - mean_a * mean_b
    likeness = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    return float((likeness / ((mean_a**2 + mean_b**2 + _C1) * (a.var(1) + b.var(1) + _C2))).mean())


def _blocks(luma: np.ndarray) -> np.ndarray:
    rows, columns = (length // _BLOCK for length in luma.shape)
    cut = luma[: rows * _BLOCK, : columns * _BLOCK].reshape(rows, _BLOCK, columns, _BLOCK)
    return cut.transpose(0, 2, 1, 3).reshape(rows * columns, _BLOCK * _BLOCK)


def clips(number: int, *, height: int, width: int, num_frames: int) -> Iterator[tuple[str, np.ndarray]]:
    """Drawn clips, each with a name."""
    from training import scenes
    from training.clips import clip

    random = np.random.default_rng(7)
    for _ in range(number):
        scene = scenes.draw(random, held_out=False)
        name = f"{scene.shape} {scene.motion}, {scene.ground}, camera {scene.camera}"
        yield name, clip(scene, height=height, width=width, num_frames=num_frames)
    yield "textured pan", np.stack(list(encode_presets.clip(width, height, num_frames)))


def cost(width: int, height: int, num_frames: int, target: int, workers: int) -> Cost:
    frames = encode_presets.clip(width, height, num_frames)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    made = interpolate.interpolated(
        frames, num_frames=num_frames, fps=16, target=target, check=lambda: None, workers=workers
    )
    shown = sum(1 for _ in made)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert shown == interpolate.count(num_frames, 16, target)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(width, height, num_frames, target, workers, seconds, cpu)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure interpolation against held-out frames.")
    parser.add_argument("--quick", action="store_true", help="two short clips; a file only with --output")
    parser.add_argument("--output", type=Path, help=f"folder of the result (default {RESULTS.name}; none with --quick)")
    options = parser.parse_args(arguments)
    folder = options.output if options.output is not None else (None if options.quick else RESULTS)

    size = (
        {"height": 96, "width": 160, "num_frames": 9}
        if options.quick
        else {"height": 240, "width": 416, "num_frames": 33}
    )
    found = []
    for name, true in clips(1 if options.quick else 7, **size):
        for ratio in RATIOS:
            print(f"{name}, {ratio} times", file=sys.stderr)
            found.append(Likeness(name, ratio, **likeness(true, ratio)))
    sizes = [(160, 96, 9, 32)] if options.quick else [(832, 480, 17, 32), (1280, 720, 17, 32)]
    costs = [cost(*each, workers=workers) for each in sizes for workers in ((1,) if options.quick else (1, 2))]
    means = [
        Likeness(
            "mean", ratio, *(statistics.fmean(getattr(one, way) for one in found if one.ratio == ratio) for way in WAYS)
        )
        for ratio in RATIOS
    ]
    beaten = all(mean.motion > max(mean.repeated, mean.blended) for mean in means)
    print(_tables(found, means, costs))
    print(f"\ninterpolation beats repeating and blending: {'yes' if beaten else 'NO'}")
    result = {"likeness": reporting.as_dicts([*found, *means]), "costs": reporting.as_dicts(costs)}
    reporting.write(folder, "interpolate", result, *PACKAGES)
    return 0 if beaten else 1


def _tables(found: list[Likeness], means: list[Likeness], costs: list[Cost]) -> str:
    ordered = sorted(found, key=lambda one: one.ratio)
    rows = [
        (one.clip, f"{one.ratio} times", *(f"{getattr(one, way):.4f}" for way in WAYS)) for one in (*ordered, *means)
    ]
    spent = [
        (
            *(f"{one.width}x{one.height}", f"{one.num_frames} to {interpolate.count(one.num_frames, 16, one.target)}"),
            *(str(one.workers), f"{one.seconds:.1f}", f"{one.cpu_seconds:.1f}"),
        )
        for one in costs
    ]
    return "\n\n".join(
        (
            reporting.table(("clip", "rate", *WAYS), rows, words=2),
            reporting.table(("size", "frames", "ffmpegs", "time (s)", "CPU (s)"), spent, words=2),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
