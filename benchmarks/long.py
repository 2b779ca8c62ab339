"""Videos of several segments on the demo model: how they join, what memory they take, and what a kill costs.

    python -m benchmarks.long [--only joins memory kills] [--prompts 20] [--steps 12] [--overlaps 1 5 9] [--svi]
        [--picture] [--output FOLDER]

`joins`: held-out scenes of four segments, in which an object moves slowly. Overlap 1 is made with and without
`color_match`, 5 and 9 with it, and with `--svi` they are made by Stable Video Infinity; does the object that was asked
for go on in its direction in every segment (`training.judging`), the seams, the drift of colour. What an earlier call
of the day measured at other overlaps stays in the file. With `--picture`, frames around the joins of the first prompts
become docs/images/longer-join.png. `memory`: the peak of a process that makes 12 segments against that of one that
makes 2. `kills`: kill -9 in a segment of five, ten times; the next worker's file has the bytes of the one that nobody
killed. Every job is a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw

from benchmarks.quality_cases import asked_scenes
from benchmarks.reporting import RESULTS
from training import scenes as writing
from training.judging import judge
from worker.weights.sources.demo_trained import WEIGHTS

SEGMENTS = 4
FIVE = 5
KILLS = 10
PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "longer-join.png"
PICTURED = 4
WIDTH = 80
# Half of the way that a slow object goes in a clip, over the 16 steps of one: less is no motion.
LEAST_STEP = 0.085 / 16
SMALL = {"prompt": "a red ball moves right over rippling water", "seed": 1, "enhance_prompt": False}
TINY = {**SMALL, "num_frames": 5, "num_inference_steps": 1, "guidance_scale": 1.0}


def job(payloads: list[dict[str, Any]], job_id: str) -> dict[str, Any]:
    """The answer to a job on the demo model in this process, and the most memory that it took."""
    from worker import start
    from worker.base import settings
    from worker.jobs import flow

    settings.quiet_imports()
    worker = start.build_worker(settings.load())
    event = {"id": job_id, "input": {"job_request_params": payloads}}
    answer = asyncio.run(flow.run(event, worker, lambda _: None))
    return {**answer, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def started(payloads: list[dict[str, Any]], folder: Path, job_id: str = "long") -> subprocess.Popen[str]:
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
    command = [sys.executable, "-m", "benchmarks.long", "--job", json.dumps(payloads), "--job-id", job_id]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def answered(payloads: list[dict[str, Any]], folder: Path, job_id: str = "long") -> dict[str, Any]:
    said = started(payloads, folder, job_id).communicate()[0]
    answer: dict[str, Any] = json.loads(said.splitlines()[-1])
    if answer["status"] != "completed":
        raise RuntimeError(f"the job {answer['status']}: {answer.get('error')}")
    return answer


def frames_of(video: dict[str, Any]) -> np.ndarray:
    with av.open(video["video_url"].removeprefix("file://")) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def joins(
    prompts: int, steps: int, overlaps: Sequence[int], folder: Path, *, svi: bool = False, picture: bool = False
) -> dict[str, Any]:
    """What a person sees of the joins: shares of segments and of videos, seams, drift of colour."""
    straight = [scene for scene in asked_scenes(prompts * 4) if scene.motion in writing.STRAIGHT][:prompts]
    scenes = [replace(scene, slow=True) for scene in straight]
    found: dict[str, Any] = {}
    cases: dict[str, dict[str, Any]] = {"matched": {}, "unmatched": {"color_match": False}} if 1 in overlaps else {}
    cases |= {f"overlap_{count}": {"overlap_frames": count} for count in overlaps if count > 1}
    cases |= {"svi": {"continuity": "svi"}} if svi else {}
    for name, fields in cases.items():
        payloads: list[dict[str, Any]] = [
            {
                "prompt": writing.sentence(scene, np.random.default_rng(seed)),
                "seed": seed,
                "enhance_prompt": False,
                "num_inference_steps": steps,
                "segments": [{}] * SEGMENTS,
                **fields,
            }
            for seed, scene in enumerate(scenes)
        ]
        parts = range(0, len(payloads), 8)
        own = [video for at in parts for video in _made(payloads[at : at + 8], folder, f"{name}-{at}")]
        found[name] = {"prompts": len(scenes), "steps": steps, **_joined(own, scenes)}
        print(name, json.dumps(found[name]), flush=True)
        if picture and name == "matched":
            _picture([frames_of(video) for video in own[:PICTURED]], own[0]["segments"])
    return found


def _picture(videos: Sequence[np.ndarray], segments: Sequence[dict[str, Any]]) -> None:
    """Frames around the joins, a line for each video; the first frames of segments have red names."""
    joined = [segment["first_frame"] for segment in segments]
    shown = [0, *(frame for first in joined[1:] for frame in (first - 1, first, first + 7))]
    canvas = Image.new("RGB", (len(shown) * (WIDTH + 2), len(videos) * (WIDTH + 18)), "white")
    for line, frames in enumerate(videos):
        for column, number in enumerate(shown):
            corner = (column * (WIDTH + 2), line * (WIDTH + 18))
            canvas.paste(Image.fromarray(frames[number]).resize((WIDTH, WIDTH)), corner)
            name = (corner[0] + 1, corner[1] + WIDTH + 1)
            colour = "red" if number in joined[1:] else "black"
            ImageDraw.Draw(canvas).text(name, f"frame {number}", fill=colour, font_size=11)
    canvas.quantize(128, dither=Image.Dither.NONE).save(PICTURE, optimize=True)


def _joined(videos: Sequence[dict[str, Any]], scenes: Sequence[writing.Scene]) -> dict[str, Any]:
    seams = [each["seam"] for video in videos for each in video["segments"][1:] if each["seam"] is not None]
    right = np.array(
        [
            [_motion(_segment(video, number)) == scene.motion for number in range(SEGMENTS)]
            for video, scene in zip(videos, scenes, strict=True)
        ]
    )
    return {
        "goes_on": float(right.mean()),
        "goes_on_to_the_end": float(right.all(1).mean()),
        "goes_on_by_segment": right.mean(0).tolist(),
        "seam_median": float(np.median(seams)),
        "seam_worst": float(np.max(seams)),
        "drift_last_segment": float(np.median([video["segments"][-1]["color_drift"] for video in videos])),
    }


def _motion(frames: np.ndarray) -> str | None:
    return judge(frames, far=LEAST_STEP * (len(frames) - 1)).motion


def _made(payloads: list[dict[str, Any]], folder: Path, name: str) -> list[dict[str, Any]]:
    videos: list[dict[str, Any]] = answered(payloads, folder, f"joins-{name}")["videos"]
    return videos


def _segment(video: dict[str, Any], number: int) -> np.ndarray:
    """The frames of a segment, and the one before it, with which it begins."""
    segment = video["segments"][number]
    first = max(0, segment["first_frame"] - 1)
    return frames_of(video)[first : segment["first_frame"] + segment["num_frames"]]


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
    parser.add_argument("--only", nargs="+", choices=("joins", "memory", "kills"), default=("joins", "memory", "kills"))
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--overlaps", type=int, nargs="+", default=[1], help="known frames: 1, 5 or 9")
    parser.add_argument("--svi", action="store_true", help="with the LoRAs of `python -m training.svi`")
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--picture", action="store_true", help="renew the picture of joins in docs/images")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--job-id", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.job is not None:
        print(json.dumps(job(json.loads(chosen.job), chosen.job_id)))
        return 0
    chosen.output.mkdir(parents=True, exist_ok=True)
    target = chosen.output / f"long-{datetime.now(UTC):%Y-%m-%d}.json"
    found: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        for part in chosen.only:
            folder = Path(name) / part
            if part == "joins":
                made = joins(
                    chosen.prompts, chosen.steps, chosen.overlaps, folder, svi=chosen.svi, picture=chosen.picture
                )
                found[part] = found.get(part, {}) | made
            else:
                found[part] = memory(folder) if part == "memory" else kills(chosen.kills, folder)
            target.write_text(json.dumps(found, indent=1) + "\n")
            print(part, json.dumps(found[part], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
