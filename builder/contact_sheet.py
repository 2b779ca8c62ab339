"""Makes docs/images/demo.png: `make run`'s job on the demo model, eight frames of the real video on one sheet.

python -m builder.contact_sheet [--output docs/images/demo.png]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import imageio_ffmpeg
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
COLUMNS, ROWS = 4, 2
FRAME_WIDTH = 224
# Noise does not compress: a palette is what keeps the file small.
COLOURS = 64


def demo_video(folder: Path) -> Path:
    """Run the worker's entry as `make run` does; the video that it stored under `folder`."""
    environment = {**os.environ, "MODEL_PROFILE": "demo", "OUTPUT_DIR": str(folder), "STATE_DIR": str(folder / "state")}
    subprocess.run([sys.executable, "handler.py"], cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    return next(folder.rglob("*.mp4"))


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


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m builder.contact_sheet", description="Make the picture of README.md."
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images" / "demo.png")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        video = demo_video(Path(folder))
        frames, _ = imageio_ffmpeg.count_frames_and_secs(str(video))
        contact_sheet(video, options.output, num_frames=frames)
    print(f"{options.output.name}: {options.output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
