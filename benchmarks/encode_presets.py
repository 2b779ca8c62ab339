"""x264's presets and threads at the worker's CRF: seconds, bytes and likeness of one clip. See `benchmarks.encode`."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import reporting

FPS = 16
PRESET = "medium"  # the one that was chosen
PRESETS = ("ultrafast", "veryfast", "faster", "fast", "medium", "slow")
SIZES = ((832, 480), (1280, 720))
FRAMES = 81
_SSIM = re.compile(r"All:([0-9.]+)")


@dataclass(frozen=True)
class Run:
    """ssim: of luma and chroma together, against the frames that went in."""

    preset: str
    threads: int
    width: int
    height: int
    seconds: float
    cpu_seconds: float
    size_bytes: int
    ssim: float


def clip(width: int, height: int, frames: int) -> Iterator[np.ndarray]:
    """A textured scene under a slow pan, with a moving object and a little grain that stays with the surfaces."""
    numbers = np.random.default_rng(0)
    scene = np.zeros((height + 64, width + 2 * frames + 64, 3), np.float32)
    for scale in (64, 16, 4, 1):
        coarse = numbers.standard_normal((scene.shape[0] // scale + 2, scene.shape[1] // scale + 2, 3))
        fine = np.repeat(np.repeat(coarse, scale, 0), scale, 1)[: scene.shape[0], : scene.shape[1]]
        scene += fine.astype(np.float32) * (4 + scale**0.5 * 4)
    scene = np.clip(scene + 128, 0, 255).astype(np.uint8)
    thing = np.clip(numbers.normal(200, 20, (height // 4, height // 4, 3)), 0, 255).astype(np.uint8)
    for number in range(frames):
        frame = scene[number // 4 : number // 4 + height, 2 * number : 2 * number + width].copy()
        top, left = height // 3 + number // 2, (5 * number) % (width - thing.shape[1])
        frame[top : top + thing.shape[0], left : left + thing.shape[1]] = thing
        yield frame


def measure(preset: str, threads: int, width: int, height: int, frames: int) -> Run:
    """Encode the clip once, its frames in memory, and hold the result against them."""
    from worker.media import encode, ffmpeg, formats

    ffmpeg.MAX_THREADS = threads
    chosen = formats.CODECS["h264"]
    options = tuple(preset if option == PRESET else option for option in chosen.options)
    formats.CODECS = {"h264": replace(chosen, options=options)}
    source = list(clip(width, height, frames))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        before, began = cpu_seconds(), time.perf_counter()
        video = encode.encode(source, path=path, width=width, height=height, num_frames=frames, fps=FPS, poster=None)
        seconds, cpu = time.perf_counter() - began, cpu_seconds() - before
        return Run(preset, threads, width, height, seconds, cpu, video.size_bytes, ssim(source, path))


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def ssim(source: list[np.ndarray], path: Path) -> float:
    """Of luma and chroma together, frame by frame: the time of a frame, which some formats round, does not matter."""
    import imageio_ffmpeg

    height, width, _ = source[0].shape
    raw = ("-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", f"{width}x{height}", "-framerate", str(FPS))
    alike = "scale=flags=accurate_rnd:out_color_matrix=bt709:out_range=tv,format=yuv420p,settb=1/1000,setpts=N"
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path), *raw, "-i", "pipe:0",
        "-lavfi", f"[1:v]{alike}[given];[0:v]{alike}[made];[made][given]ssim", "-f", "null", "-",
    ]  # fmt: skip
    answer = subprocess.run(
        command, input=b"".join(frame.tobytes() for frame in source), capture_output=True, check=True
    )
    found = _SSIM.search(answer.stderr.decode())
    if found is None:
        raise RuntimeError("ffmpeg printed no SSIM")
    return float(found[1])


def run_all(repeats: int, *, quick: bool) -> dict[str, Any]:
    """Every preset on all cores, and the chosen one on one core less, taking turns; returns medians and runs."""
    cores = os.cpu_count() or 1
    cases = [(preset, cores, *size) for size in SIZES for preset in PRESETS]
    cases += [(PRESET, threads, *size) for size in SIZES for threads in (1, 2 * cores, 4 * cores)]
    if quick:
        cases = [("veryfast", 1, 160, 96), ("medium", 1, 160, 96)]
    runs: list[Run] = []
    for repeat in range(repeats):
        for case in cases:
            print(f"run {repeat + 1} of {repeats}: {case}", file=sys.stderr)
            arguments = [*map(str, case), "5" if quick else str(FRAMES)]
            command = [sys.executable, "-m", "benchmarks.encode_presets", *arguments]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            runs.append(Run(**json.loads(answer.stdout.splitlines()[-1])))
    medians = reporting.medians(runs, "preset", "threads", "width", "height")
    print(_table(medians, repeats))
    return {"medians": reporting.as_dicts(medians), "runs": reporting.as_dicts(runs)}


def _table(medians: list[Run], repeats: int) -> str:
    heads = ("size", "preset", "threads", "time (s)", "CPU (s)", "MB", "SSIM")
    rows = [
        (
            *(f"{run.width}x{run.height}", run.preset, str(run.threads), f"{run.seconds:.2f}"),
            *(f"{run.cpu_seconds:.2f}", f"{run.size_bytes / 1e6:.2f}", f"{run.ssim:.4f}"),
        )
        for run in medians
    ]
    return f"{FRAMES} frames, CRF 18, medians of {repeats}\n\n{reporting.table(heads, rows, words=2)}"


if __name__ == "__main__":
    preset, *numbers = sys.argv[1:]
    threads, width, height, frames = map(int, numbers)
    print(json.dumps(asdict(measure(preset, threads, width, height, frames))))
