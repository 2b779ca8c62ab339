"""Videos of several segments on the demo model: how they join, what memory they take, and what a kill costs.

    python -m benchmarks.long [--only joins loop drift memory kills] [--prompts 20] [--steps 12] [--overlaps 1 5 9]
        [--svi] [--picture] [--model demo|wan2.2] [--output FOLDER]

`joins`: four segments of 12 frames each from the first picture of a held-out scene, in which an object moves slowly, at
each number of known frames, and with `--svi` by Stable Video Infinity, with and without `color_match`. Does the object
go on in its direction in every segment, how far, the seams, the drift of colour (`benchmarks.long_joins`). What an
earlier call of the day measured in other cases stays in the file. With `--picture`, frames around the joins of the
first prompts become docs/images/longer-join.png. `loop`: two segments of scenes whose object comes back, with `loop`
and without it; the step from the last frame to the first against the median step. `drift`: as joins, with frames a
tenth lighter than they were made, with and without `color_match`. `memory`: the peak of a process that makes 12
segments against that of one that makes 2. `kills`: kill -9 in a segment of five, ten times; the next worker's file has
the bytes of the one that nobody killed. Every job is a process of its own.

With `--model wan2.2` the worker of this environment makes the videos (MODEL_CACHE_DIR and its other settings), at
832 x 480 with 80 new frames in a segment, on the GPU; the file is long-wan2.2-DATE.json.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.long_jobs import MODELS, Model, answered, started
from benchmarks.long_joins import PICTURED, draw_joins, joined, looped
from benchmarks.quality_cases import asked_scenes
from benchmarks.reporting import RESULTS
from training import scenes as writing
from training.clips import clip
from worker.request.segments import SVI_OVERLAP

PARTS = ("joins", "loop", "drift", "memory", "kills")
SEGMENTS = 4
FIVE = 5
COMES_BACK = ("round", "bounce")
# New frames in each of two segments: in 16 the demo's object comes back to where it was, in 12 it is on the other side.
TURNS = (16, 12)
KILLS = 10
GAIN = 1.1
SMALL = {"prompt": "a red ball moves right over rippling water", "seed": 1, "enhance_prompt": False}
TINY = {**SMALL, "num_frames": 5, "num_inference_steps": 1, "guidance_scale": 1.0}


def joins(
    prompts: int,
    steps: int,
    overlaps: Sequence[int],
    folder: Path,
    *,
    model: Model = MODELS["demo"],
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
        own = _made(_payloads(scenes, steps, fields, model), folder, name, model)
        found[name] = {"prompts": len(scenes), "steps": steps, **joined(own, scenes)}
        print(name, json.dumps(found[name]), flush=True)
        if picture and name == "overlap_1":
            draw_joins(own[:PICTURED])
    return found


def loop(
    prompts: int, steps: int, folder: Path, model: Model = MODELS["demo"], turns: Sequence[int] = TURNS
) -> dict[str, Any]:
    """How far the last frame is from the first in videos that are asked to loop, and in the same without `loop`."""
    scenes = [scene for scene in asked_scenes(prompts * 5) if scene.motion in COMES_BACK][:prompts]
    found: dict[str, Any] = {"prompts": len(scenes), "steps": steps}
    for new in turns if model.profile == "demo" else (model.new_frames,):
        for name, fields in ((f"loop_{new}", {"loop": True}), (f"open_{new}", {})):
            asked = {"segments": [{}, {}], "num_frames": new + 1, **fields}
            found[name] = looped(_made(_payloads(scenes, steps, asked, model), folder, name, model))
            print(name, json.dumps(found[name]), flush=True)
    return found


def drift(prompts: int, steps: int, folder: Path, model: Model = MODELS["demo"]) -> dict[str, Any]:
    """The drift of colour from the first to the last segment, where each is made lighter by `GAIN`."""
    scenes = _slow(prompts)
    found: dict[str, Any] = {"prompts": len(scenes), "steps": steps, "gain": GAIN}
    for name, match in (("matched", True), ("unmatched", False)):
        asked = _payloads(scenes, steps, {"color_match": match}, model)
        own = _made(asked, folder, f"drift-{name}", model, gain=GAIN)
        found[name] = float(np.median([video["segments"][-1]["color_drift"] for video in own]))
    return found


def _slow(count: int) -> list[writing.Scene]:
    straight = [scene for scene in asked_scenes(count * 4) if scene.motion in writing.STRAIGHT][:count]
    return [replace(scene, slow=True) for scene in straight]


def _payloads(
    scenes: Sequence[writing.Scene], steps: int, fields: dict[str, Any], model: Model
) -> list[dict[str, Any]]:
    return [
        {
            "prompt": writing.sentence(scene, np.random.default_rng(seed)),
            "seed": seed,
            "enhance_prompt": False,
            "num_inference_steps": steps,
            "segments": [{"num_frames": model.new_frames + 1}, *[{}] * (SEGMENTS - 1)],  # as much is shown in each case
            "reference_image_url": _picture_of(scene, model),
            "width": model.width,
            "height": model.height,
            "num_frames": model.new_frames + int(fields.get("overlap_frames", 1)),
            **fields,
        }
        for seed, scene in enumerate(scenes)
    ]


def _picture_of(scene: writing.Scene, model: Model) -> str:
    """The first frame of the scene, in a data URI."""
    stream = io.BytesIO()
    Image.fromarray(clip(scene, height=model.height, width=model.width)[0]).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _made(
    payloads: list[dict[str, Any]], folder: Path, name: str, model: Model, *, gain: float = 1.0
) -> list[dict[str, Any]]:
    """The videos of `payloads`, eight in a job."""
    videos: list[dict[str, Any]] = []
    for at in range(0, len(payloads), 8):
        videos += answered(payloads[at : at + 8], folder, f"{name}-{at}", model=model, gain=gain)["videos"]
    return videos


def memory(folder: Path, model: Model = MODELS["demo"]) -> dict[str, Any]:
    asked = {**SMALL, "num_inference_steps": 1}
    peaks = {
        count: answered([{**asked, "segments": [{}] * count}], folder, f"m{count}", model=model) for count in (2, 12)
    }
    few, many = (peaks[count]["peak_bytes"] for count in (2, 12))
    return {"segments_2_bytes": few, "segments_12_bytes": many, "ratio": many / few}


def kills(count: int, folder: Path, model: Model = MODELS["demo"]) -> dict[str, Any]:
    """How many of `count` killed jobs end with the file that an undisturbed one has."""
    payloads = [{**TINY, "segments": [{}] * FIVE}]
    whole = answered(payloads, folder, "whole", model=model)["videos"][0]["sha256"]
    same = []
    for number in range(count):
        at = 1 + number % (FIVE - 1)
        process = started(payloads, folder, f"kill-{number}", model=model)
        while len(list((folder / "state" / "segments").glob(f"*kill-{number}-*.json"))) < at and process.poll() is None:
            time.sleep(0.02)
        process.kill()
        process.communicate()
        same.append(answered(payloads, folder, f"kill-{number}", model=model)["videos"][0]["sha256"] == whole)
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
    parser.add_argument("--model", choices=MODELS, default="demo", help="wan2.2: the real one, on this machine's GPU")
    chosen = parser.parse_args()
    chosen.output.mkdir(parents=True, exist_ok=True)
    model = MODELS[chosen.model]
    named = "long" if chosen.model == "demo" else f"long-{chosen.model}"
    target = chosen.output / f"{named}-{datetime.now(UTC):%Y-%m-%d}.json"
    found: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        for part in chosen.only:
            folder = Path(name) / part
            if part == "joins":
                found[part] = found.get(part, {}) | joins(
                    chosen.prompts,
                    chosen.steps,
                    chosen.overlaps,
                    folder,
                    model=model,
                    svi=chosen.svi,
                    picture=chosen.picture,
                )
            elif part in ("loop", "drift"):
                found[part] = {"loop": loop, "drift": drift}[part](chosen.prompts, chosen.steps, folder, model)
            else:
                found[part] = memory(folder, model) if part == "memory" else kills(chosen.kills, folder, model)
            target.write_text(json.dumps(found, indent=1) + "\n")
            print(part, json.dumps(found[part], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
