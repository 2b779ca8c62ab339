"""Memory and time of the streamed decode and encode, against decoding and encoding whole arrays.

    python -m benchmarks.encode             1280x720: 81 and 161 frames streamed, 81 as whole arrays; three runs each
    python -m benchmarks.encode --presets   x264's presets and threads: seconds, bytes, likeness
    python -m benchmarks.encode --codecs    every codec at every quality: seconds, bytes, likeness beside H.264's
    python -m benchmarks.encode --quick     a few small frames, to see that it works

Each run is a process of its own. The VAE is the real class at a tiny width, with random weights: its arithmetic is
small, while the frames that it makes, and what is held of them, have their full size. Prints a Markdown table and
writes every run to `benchmarks/results/encode-DATE.json`; ends with status 1 where memory grew with the frames.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import encode_codecs, encode_presets, reporting
from benchmarks.reporting import RESULTS

PACKAGES = ("torch", "diffusers", "numpy", "imageio-ffmpeg")
FLAT_WITHIN = 0.10
FPS = 16
# 4x by two upsampling stages, 10x by patches: 1280x720 from a latent of 32x18.
PATCH_SIZE = 10
SPATIAL_STRIDE = 4 * PATCH_SIZE
MIB = 1024 * 1024


@dataclass(frozen=True)
class Case:
    """`frames`: the two lengths of which streaming should need the same memory; the first is also done whole."""

    width: int
    height: int
    frames: tuple[int, int]
    repeats: int

    @property
    def plan(self) -> tuple[tuple[str, int], ...]:
        fewer, more = self.frames
        return (("streamed", fewer), ("streamed", more), ("whole", fewer))


FULL = Case(width=1280, height=720, frames=(81, 161), repeats=3)
QUICK = Case(width=160, height=120, frames=(5, 9), repeats=1)


@dataclass(frozen=True)
class Run:
    """One process. Memory in MiB: resident before the decode, the process's peak, and ffmpeg's peak."""

    way: str
    num_frames: int
    seconds: float
    before_mib: float
    peak_mib: float
    ffmpeg_peak_mib: float
    size_bytes: int


def _vae() -> Any:
    import torch
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    channels = 3 * PATCH_SIZE**2
    return AutoencoderKLWan(
        base_dim=8,
        z_dim=16,
        dim_mult=[1, 1, 1],
        temperal_downsample=[True, True],
        num_res_blocks=1,
        is_residual=True,
        patch_size=PATCH_SIZE,
        in_channels=channels,
        out_channels=channels,
        scale_factor_spatial=SPATIAL_STRIDE,
    ).eval()


def _latents(count: int, height: int, width: int) -> Any:
    """A still picture that slowly becomes another: noise would be no video, and all work for the encoder."""
    import torch

    first, last = torch.randn(2, 1, 16, 1, height, width, generator=torch.Generator().manual_seed(1))
    return first + (last - first) * torch.linspace(0, 0.05, count).view(1, 1, -1, 1, 1)


def _whole_frames(vae: Any, latents: Any) -> Any:
    """The pipeline's own way: the whole video as floats, then as bytes."""
    import torch
    from diffusers.video_processor import VideoProcessor

    with torch.no_grad():
        shape = (1, -1, 1, 1, 1)
        inverse_std = 1.0 / torch.tensor(vae.config.latents_std).view(shape)
        sample = vae.decode(latents / inverse_std + torch.tensor(vae.config.latents_mean).view(shape)).sample
        video = VideoProcessor().postprocess_video(sample, output_type="np")[0]
    return (video * 255).round().astype("uint8")


@contextmanager
def _ffmpeg_peak(peaks: list[float]) -> Iterator[None]:
    """Append the highest resident memory (MiB) of any child process.

    Read from /proc: the `ru_maxrss` of a child counts its parent's memory too, from before it became ffmpeg.
    """
    import psutil

    done = threading.Event()
    highest = 0.0

    def sample() -> None:
        nonlocal highest
        while not done.wait(0.02):
            for child in psutil.Process().children():
                try:
                    status = Path(f"/proc/{child.pid}/status").read_text()
                except OSError:
                    continue
                if "\nVmHWM:" in status and "ffmpeg" in status.splitlines()[0]:
                    highest = max(highest, int(status.split("VmHWM:")[1].split()[0]) / 1024)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield
    finally:
        done.set()
        sampler.join()
        peaks.append(highest)


def measure(way: str, num_frames: int, *, width: int, height: int) -> Run:
    """Decode and encode once, in this process, which should be fresh: its peak counts all that it ever did."""
    import psutil
    import torch

    from worker.engine import decode
    from worker.media.encode import encode

    # On a GPU the decode leaves the cores to ffmpeg; here it leaves it half of them.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    vae = _vae()
    latents = _latents((num_frames - 1) // 4 + 1, height // SPATIAL_STRIDE, width // SPATIAL_STRIDE)
    before = psutil.Process().memory_info().rss / MIB
    ffmpeg_peaks: list[float] = []
    with tempfile.TemporaryDirectory() as folder, _ffmpeg_peak(ffmpeg_peaks):
        start = time.perf_counter()
        video = encode(
            decode.frames(vae, latents) if way == "streamed" else list(_whole_frames(vae, latents)),
            path=Path(folder) / "0.mp4",
            width=width,
            height=height,
            num_frames=num_frames,
            fps=FPS,
            poster=Path(folder) / "0.jpg",
        )
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Run(way, num_frames, seconds, before, peak, ffmpeg_peaks[0], video.size_bytes)


def _run_all(case: Case) -> list[Run]:
    runs = []
    for repeat in range(case.repeats):
        for way, num_frames in case.plan:
            print(f"run {repeat + 1} of {case.repeats}: {way}, {num_frames} frames", file=sys.stderr)
            measured = ["--measure", way, str(num_frames), str(case.width), str(case.height)]
            command = [sys.executable, "-m", "benchmarks.encode", *measured]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            runs.append(Run(**json.loads(answer.stdout.splitlines()[-1])))
    return runs


def _comparison(medians: list[Run]) -> dict[str, float]:
    """More frames against fewer, and whole against streamed. `added` leaves out what was resident before."""
    fewer, more, whole = medians
    return {
        "peak_ratio": more.peak_mib / fewer.peak_mib,
        "added_ratio": (more.peak_mib - more.before_mib) / (fewer.peak_mib - fewer.before_mib),
        "ffmpeg_peak_ratio": more.ffmpeg_peak_mib / fewer.ffmpeg_peak_mib if fewer.ffmpeg_peak_mib else 1.0,
        "whole_peak_ratio": whole.peak_mib / fewer.peak_mib,
        "whole_time_ratio": whole.seconds / fewer.seconds,
    }


def _table(case: Case, medians: list[Run]) -> str:
    heads = ("way", "frames", "time (s)", "peak (MiB)", "of it added (MiB)", "ffmpeg's peak (MiB)")
    rows = [
        (
            *(run.way, str(run.num_frames), f"{run.seconds:.1f}", f"{run.peak_mib:.0f}"),
            *(f"{run.peak_mib - run.before_mib:.0f}", f"{run.ffmpeg_peak_mib:.0f}"),
        )
        for run in medians
    ]
    return f"{case.width}x{case.height}, medians of {case.repeats}\n\n{reporting.table(heads, rows)}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the streamed decode and encode against whole arrays.")
    parser.add_argument(
        "--quick", action="store_true", help="a few small frames, one run each; a file only with --output"
    )
    parser.add_argument("--presets", action="store_true", help="compare x264's presets and threads instead")
    parser.add_argument("--codecs", action="store_true", help="compare the codecs and their qualities instead")
    parser.add_argument("--output", type=Path, help=f"folder of the result (default {RESULTS.name}; none with --quick)")
    parser.add_argument("--measure", nargs=4, metavar=("WAY", "FRAMES", "WIDTH", "HEIGHT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        way, num_frames, width, height = options.measure
        print(json.dumps(asdict(measure(way, int(num_frames), width=int(width), height=int(height)))))
        return 0

    folder = options.output if options.output is not None else (None if options.quick else RESULTS)
    if options.presets:
        found = encode_presets.run_all(1 if options.quick else 3, quick=options.quick)
        reporting.write(folder, "encode-presets", found, *PACKAGES)
        return 0
    if options.codecs:
        found = encode_codecs.run_all(quick=options.quick)
        reporting.write(folder, "encode-codecs", found, *PACKAGES)
        return 0 if found["alike"] or options.quick else 1
    case = QUICK if options.quick else FULL
    runs = _run_all(case)
    medians = reporting.medians(runs, "way", "num_frames")
    comparison = _comparison(medians)
    flat = all(abs(comparison[name] - 1) <= FLAT_WITHIN for name in ("peak_ratio", "ffmpeg_peak_ratio"))
    fewer, more = case.frames
    print(_table(case, medians))
    print(f"\n{more} frames against {fewer}, streamed: peak x {comparison['peak_ratio']:.3f}, ", end="")
    print(f"added x {comparison['added_ratio']:.3f}, ffmpeg's peak x {comparison['ffmpeg_peak_ratio']:.3f}")
    print(f"{fewer} frames, whole against streamed: peak x {comparison['whole_peak_ratio']:.2f}, ", end="")
    print(f"time x {comparison['whole_time_ratio']:.2f}")
    print(f"streamed memory is flat within {FLAT_WITHIN:.0%}: {'yes' if flat else 'NO'}")

    result = {
        "case": asdict(case),
        "flat": flat,
        "comparison": comparison,
        "medians": reporting.as_dicts(medians),
        "runs": reporting.as_dicts(runs),
    }
    reporting.write(folder, "encode", result, *PACKAGES)
    # The short runs of --quick end before ffmpeg's memory is seen for certain.
    return 0 if flat or options.quick else 1


if __name__ == "__main__":
    sys.exit(main())
