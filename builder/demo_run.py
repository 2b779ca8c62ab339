"""Renews the pictures and the example of the docs from a real run: `python -m builder.demo_run`.

Runs the worker's entry on the demo model with two jobs. From that of `make run` (test_input.json): eight frames of each
video, docs/images/demo.png and docs/images/demo-from-picture.png, and the result of the first as the example
`json video-result` of docs/answer.md, with the URLs that a bucket gives. From the job `CLIPS`: the moving picture of
README.md, docs/images/demo.gif, both clips side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import imageio_ffmpeg
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
ANSWER = ROOT / "docs" / "answer.md"
IMAGES = ROOT / "docs" / "images"
PICTURES = ("demo.png", "demo-from-picture.png")
JOB_ID = "abc-123"
BUCKET = "https://my-bucket.nyc3.digitaloceanspaces.com"
COLUMNS, ROWS = 4, 2
FRAME_WIDTH = 224
# A palette is what keeps the file small.
COLOURS = 128
# What the demo model draws best: see docs/demo-model.md.
CLIPS = ("A white box moves up at night", "A green star moves down at night")
_CLIP = {"height": 256, "width": 256, "num_frames": 17, "num_inference_steps": 30, "guidance_scale": 3.0, "fps": 8}


def run(folder: Path, payload: Mapping[str, Any]) -> list[tuple[Path, dict[str, Any]]]:
    """The videos of the job `payload`, written under `folder`, each with its result as the journal keeps it."""
    job = {"input": {**payload, "job_id": JOB_ID}}
    state = folder / "state"
    places = {"OUTPUT_DIR": str(folder), "STATE_DIR": str(state)}
    command = [sys.executable, str(ROOT / "handler.py"), "--test_input", json.dumps(job)]
    subprocess.run(command, env={**os.environ, "MODEL_PROFILE": "demo", **places}, check=True, cwd=folder)
    (entry,) = (state / "jobs").glob("*.json")
    finished = json.loads(entry.read_text(encoding="utf-8"))["finished"]
    videos = sorted(folder.rglob("*.mp4"))
    return [(video, finished[str(index)]) for index, video in enumerate(videos)]


def contact_sheet(video: Path, target: Path, *, num_frames: int) -> None:
    """Write a PNG of COLUMNS x ROWS frames, evenly spaced over the video's `num_frames`."""
    every = max(1, num_frames // (COLUMNS * ROWS))
    pick = f"select='not(mod(n,{every}))',scale={FRAME_WIDTH}:-2,tile={COLUMNS}x{ROWS}:padding=4:color=white"
    with tempfile.TemporaryDirectory() as folder:
        sheet = Path(folder) / "sheet.png"
        ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(video)]
        subprocess.run([*ffmpeg, "-vf", pick, "-frames:v", "1", str(sheet)], check=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(sheet) as image:
            image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)


def moving_picture(videos: Sequence[Path], target: Path) -> None:
    """Write a GIF that shows `videos` side by side, endlessly, with one palette for all frames."""
    inputs = [argument for video in videos for argument in ("-i", str(video))]
    beside = (
        f"hstack=inputs={len(videos)},split[a][b];[a]palettegen=max_colors={COLOURS}[p];[b][p]paletteuse=dither=none"
    )
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y"]
    subprocess.run([*ffmpeg, *inputs, "-filter_complex", beside, "-loop", "0", str(target)], check=True)


def with_example(page: str, result: dict[str, Any]) -> str:
    """`page` with `result` as its example. Raises ValueError where the example is not there once."""
    shown = {key: _public(value) if key.endswith("_url") else value for key, value in result.items()}
    text = json.dumps(shown, indent=2, ensure_ascii=False)
    pieces = re.split(r"(?<=^```json video-result\n).*?(?=^```$)", page, flags=re.DOTALL | re.MULTILINE)
    if len(pieces) != 2:
        raise ValueError("docs/answer.md must hold one example `json video-result`")
    return f"{pieces[0]}{text}\n{pieces[1]}"


def _public(url: str) -> str:
    """The URL of a file in OUTPUT_DIR as a bucket would give it: the key is the same."""
    return f"{BUCKET}/videos/{url.split('/videos/', 1)[1]}"


def main() -> None:
    argparse.ArgumentParser(prog="python -m builder.demo_run", description=__doc__).parse_args()
    payload = json.loads((ROOT / "test_input.json").read_text(encoding="utf-8"))["input"]
    with tempfile.TemporaryDirectory() as folder:
        made = run(Path(folder), payload)
        for name, (video, result) in zip(PICTURES, made, strict=True):
            contact_sheet(video, IMAGES / name, num_frames=result["num_frames"])
            print(f"wrote {name}, {(IMAGES / name).stat().st_size / 1000:.0f} kB")
    with tempfile.TemporaryDirectory() as folder:
        clips = run(Path(folder), {"job_request_params": [{**_CLIP, "prompt": clip, "seed": 7} for clip in CLIPS]})
        moving_picture([video for video, _ in clips], IMAGES / "demo.gif")
        print(f"wrote demo.gif, {(IMAGES / 'demo.gif').stat().st_size / 1000:.0f} kB")
    shown = made[0][1]
    shown.pop("cold_start", None)  # of the first video of a process only
    ANSWER.write_text(with_example(ANSWER.read_text(encoding="utf-8"), shown), encoding="utf-8")
    print("wrote the example of docs/answer.md")


if __name__ == "__main__":
    main()
