"""Videos of several segments on the demo model: how they join, what memory they take, and what a kill costs.

    python -m benchmarks.long [--only joins drift memory kills] [--prompts 20] [--steps 12] [--overlaps 1 5 9] [--svi]
        [--picture] [--output FOLDER]

`joins`: four segments of 12 frames each from the first picture of a held-out scene, in which an object moves slowly, at
each number of known frames, and with `--svi` by Stable Video Infinity, with and without `color_match`. Does the object
go on in its direction in every segment, how far, the seams, the drift of colour (`benchmarks.long_joins`). What an
earlier call of the day measured in other cases stays in the file. With `--picture`, frames around the joins of the
first prompts become docs/images/longer-join.png. `drift`: the same, with frames a tenth lighter than they were made,
with and without `color_match`. `memory`: the peak of a process that makes 12 segments against that of one that makes 2.
`kills`: kill -9 in a segment of five, ten times; the next worker's file has the bytes of the one that nobody killed.
Every job is a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.long_joins import PICTURED, draw_joins, joined
from benchmarks.quality_cases import SIZE, asked_scenes
from benchmarks.reporting import RESULTS
from training import scenes as writing
from training.clips import clip
from worker.engine import Rendering, Video
from worker.media.color_match import from_linear, to_linear
from worker.request.segments import SVI_OVERLAP
from worker.weights.sources.demo_trained import WEIGHTS

PARTS = ("joins", "drift", "memory", "kills")
SEGMENTS = 4
# Frames that each segment goes on by: in four the object stays within the frame.
NEW = 12
FIVE = 5
KILLS = 10
GAIN = 1.1
SMALL = {"prompt": "a red ball moves right over rippling water", "seed": 1, "enhance_prompt": False}
TINY = {**SMALL, "num_frames": 5, "num_inference_steps": 1, "guidance_scale": 1.0}


def job(payloads: list[dict[str, Any]], job_id: str, gain: float = 1.0) -> dict[str, Any]:
    """The answer to a job on the demo model in this process, and the most memory that it took.

    gain: by how much every segment that begins with a picture is made lighter, in linear light.
    """
    from worker import start
    from worker.base import settings
    from worker.jobs import flow

    settings.quiet_imports()
    worker = start.build_worker(settings.load())
    if gain != 1:
        worker.engine.generate = _lighter(worker.engine.generate, gain)  # type: ignore[method-assign]
    event = {"id": job_id, "input": {"job_request_params": payloads}}
    answer = asyncio.run(flow.run(event, worker, lambda _: None))
    return {**answer, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def _lighter(generate: Callable[..., Rendering], gain: float) -> Callable[..., Rendering]:
    levels = np.rint(from_linear(gain * to_linear(np.arange(256) / 255)) * 255).astype(np.uint8)

    def drawn(video: Video, **others: Any) -> Rendering:
        rendering = generate(video, **others)

        def frames() -> Generator[np.ndarray]:
            with closing(rendering.frames()) as own:
                yield from (levels[frame] for frame in own)

        return rendering if video.conditioning.image is None else replace(rendering, frames=frames)

    return drawn


def started(
    payloads: list[dict[str, Any]], folder: Path, job_id: str = "long", *, gain: float = 1.0
) -> subprocess.Popen[str]:
    models = folder / "models"
    if not models.exists():  # what an operator puts there
        (models / "loras").mkdir(parents=True)
        for file in (WEIGHTS / "loras").glob("svi-*.safetensors"):
            shutil.copy(file, models / "loras")
    environment = {
        **{name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "OMP_NUM_THREADS")},
        **{"MODEL_PROFILE": "demo", "STATE_DIR": str(folder / "state"), "OUTPUT_DIR": str(folder / "out")},
        "MODEL_CACHE_DIR": str(models),
    }
    asked = folder / f"{job_id}.json"  # pictures are too long for a command line
    asked.write_text(json.dumps(payloads))
    command = [sys.executable, "-m", "benchmarks.long", "--job", str(asked), "--job-id", job_id, "--gain", str(gain)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def answered(
    payloads: list[dict[str, Any]], folder: Path, job_id: str = "long", *, gain: float = 1.0
) -> dict[str, Any]:
    said = started(payloads, folder, job_id, gain=gain).communicate()[0]
    answer: dict[str, Any] = json.loads(said.splitlines()[-1])
    if answer["status"] != "completed":
        raise RuntimeError(f"the job {answer['status']}: {answer.get('error')}")
    return answer


def joins(
    prompts: int,
    steps: int,
    overlaps: Sequence[int],
    folder: Path,
    *,
    svi: bool = False,
    picture: bool = False,
) -> dict[str, Any]:
    """What a person sees of the joins: shares of segments and of videos, seams, drift of colour."""
    scenes = _slow(prompts)
    found: dict[str, Any] = {}
    cases: dict[str, dict[str, Any]] = {f"overlap_{count}": {"overlap_frames": count} for count in overlaps}
    if svi:
        cases["svi"] = {"continuity": "svi", "overlap_frames": SVI_OVERLAP}
        cases["svi_unmatched"] = {**cases["svi"], "color_match": False}
    for name, fields in cases.items():
        own = _made(_payloads(scenes, steps, fields), folder, name)
        found[name] = {"prompts": len(scenes), "steps": steps, **joined(own, scenes)}
        print(name, json.dumps(found[name]), flush=True)
        if picture and name == "overlap_1":
            draw_joins(own[:PICTURED])
    return found


def drift(prompts: int, steps: int, folder: Path) -> dict[str, Any]:
    """The drift of colour from the first to the last segment, where each is made lighter by `GAIN`."""
    scenes = _slow(prompts)
    found: dict[str, Any] = {"prompts": len(scenes), "steps": steps, "gain": GAIN}
    for name, match in (("matched", True), ("unmatched", False)):
        own = _made(_payloads(scenes, steps, {"color_match": match}), folder, f"drift-{name}", gain=GAIN)
        found[name] = float(np.median([video["segments"][-1]["color_drift"] for video in own]))
    return found


def _slow(count: int) -> list[writing.Scene]:
    straight = [scene for scene in asked_scenes(count * 4) if scene.motion in writing.STRAIGHT][:count]
    return [replace(scene, slow=True) for scene in straight]


def _payloads(scenes: Sequence[writing.Scene], steps: int, fields: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": writing.sentence(scene, np.random.default_rng(seed)),
            "seed": seed,
            "enhance_prompt": False,
            "num_inference_steps": steps,
            "segments": [{}] * SEGMENTS,
            "reference_image_url": _picture_of(scene),
            "num_frames": NEW + int(fields.get("overlap_frames", 1)),
            **fields,
        }
        for seed, scene in enumerate(scenes)
    ]


def _picture_of(scene: writing.Scene) -> str:
    """The first frame of the scene, in a data URI."""
    stream = io.BytesIO()
    Image.fromarray(clip(scene, height=SIZE, width=SIZE)[0]).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _made(payloads: list[dict[str, Any]], folder: Path, name: str, *, gain: float = 1.0) -> list[dict[str, Any]]:
    """The videos of `payloads`, eight in a job."""
    videos: list[dict[str, Any]] = []
    for at in range(0, len(payloads), 8):
        videos += answered(payloads[at : at + 8], folder, f"{name}-{at}", gain=gain)["videos"]
    return videos


def memory(folder: Path) -> dict[str, Any]:
    peaks = {
        count: answered([{**SMALL, "num_inference_steps": 1, "segments": [{}] * count}], folder, f"m{count}")
        for count in (2, 12)
    }
    few, many = (peaks[count]["peak_bytes"] for count in (2, 12))
    return {"segments_2_bytes": few, "segments_12_bytes": many, "ratio": many / few}


def kills(count: int, folder: Path) -> dict[str, Any]:
    """How many of `count` killed jobs end with the file that an undisturbed one has."""
    payloads = [{**TINY, "segments": [{}] * FIVE}]
    whole = answered(payloads, folder, "whole")["videos"][0]["sha256"]
    same = []
    for number in range(count):
        at = 1 + number % (FIVE - 1)
        process = started(payloads, folder, f"kill-{number}")
        while len(list((folder / "state" / "segments").glob(f"*kill-{number}-*.json"))) < at and process.poll() is None:
            time.sleep(0.02)
        process.kill()
        process.communicate()
        same.append(answered(payloads, folder, f"kill-{number}")["videos"][0]["sha256"] == whole)
    return {"kills": count, "same_bytes": sum(same)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--overlaps", type=int, nargs="*", default=[1], help="none, or known frames: 1, 5 or 9")
    parser.add_argument("--svi", action="store_true", help="with the LoRAs of `python -m training.svi`")
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--picture", action="store_true", help="renew the picture of joins in docs/images")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--job-id", help=argparse.SUPPRESS)
    parser.add_argument("--gain", type=float, default=1.0, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.job is not None:
        print(json.dumps(job(json.loads(chosen.job.read_text()), chosen.job_id, chosen.gain)))
        return 0
    chosen.output.mkdir(parents=True, exist_ok=True)
    target = chosen.output / f"long-{datetime.now(UTC):%Y-%m-%d}.json"
    found: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        for part in chosen.only:
            folder = Path(name) / part
            if part == "joins":
                made = joins(
                    chosen.prompts,
                    chosen.steps,
                    chosen.overlaps,
                    folder,
                    svi=chosen.svi,
                    picture=chosen.picture,
                )
                found[part] = found.get(part, {}) | made
            elif part == "drift":
                found[part] = drift(chosen.prompts, chosen.steps, folder)
            else:
                found[part] = memory(folder) if part == "memory" else kills(chosen.kills, folder)
            target.write_text(json.dumps(found, indent=1) + "\n")
            print(part, json.dumps(found[part], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
