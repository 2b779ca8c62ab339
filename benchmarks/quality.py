"""What the demo model shows of what was asked, and what each shortcut costs, as numbers.

    python -m benchmarks.quality [--prompts 100] [--each 16] [--steps 50] [--only NAME ...] [--output FOLDER]

Held-out scenes with fixed seeds go through the worker's own engine. Their frames are judged by `training.judging`,
from pixels alone: is the object of the colour and shape that was asked, does it move as asked. `exact`, `image` and
`turbo` take `--prompts` scenes, every other case the first `--each` of them. Writes a dated JSON (with `--only` into
what an earlier call of the day left), prints a table, and keeps sheets of clips in docs/images. The first row, `drawn`,
judges the drawn clips themselves: the most that any model can reach.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from benchmarks import reporting
from benchmarks.quality_cases import CASES, SIZE, Case, Clip, Studio, asked_scenes, drawn
from benchmarks.reporting import RESULTS
from training.judging import camera, judge
from training.lora import LUMA, SEPIA

ROOT = Path(__file__).resolve().parent.parent
SHEET = ROOT / "docs" / "images"
_SHEET_FRAMES = (0, 5, 10, 16)
_SHEET_WIDTH = 72
_COLUMNS = 5
_PEAK = 255.0


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio of pictures of one shape, 0 to 255; 99 where they are equal."""
    error = float(np.square(one.astype(np.float32) - other.astype(np.float32)).mean())
    return 99.0 if error == 0 else float(10 * np.log10(_PEAK**2 / error))


def flicker(frames: np.ndarray) -> float:
    """Mean absolute second difference over time, in levels of 255: 0 for what stands or fades evenly."""
    return float(np.abs(np.diff(frames.astype(np.float32), n=2, axis=0)).mean())


def sepia_db(frames: np.ndarray) -> float:
    """Likeness (PSNR) of frames to a print of them in sepia, as bright as they are: the style LoRA's style."""
    luma, tint = np.array(LUMA, dtype=np.float32), np.array(SEPIA, dtype=np.float32)
    return psnr_db(frames, (frames.astype(np.float32) @ luma)[..., None] * tint / (luma @ tint))


def figures(clips: Sequence[Clip], exact: Sequence[Clip] | None) -> dict[str, float]:
    """Shares of clips that show what was asked, and means over all of them."""
    verdicts = [judge(clip.frames) for clip in clips]
    found = {
        "clips": len(clips),
        "colour": _share([verdict.colour == clip.scene.colour for verdict, clip in zip(verdicts, clips, strict=True)]),
        "motion": _share([verdict.motion == clip.scene.motion for verdict, clip in zip(verdicts, clips, strict=True)]),
        "shape": _share([verdict.shape == clip.scene.shape for verdict, clip in zip(verdicts, clips, strict=True)]),
        "flicker": _mean([flicker(clip.frames) for clip in clips]),
        "sepia_db": _mean([sepia_db(clip.frames) for clip in clips]),
        "seconds": _mean([clip.seconds for clip in clips]),
    }
    moved = [clip for clip in clips if clip.scene.camera != "none"]
    if moved:
        found["camera"] = _share([camera(clip.frames) == clip.scene.camera for clip in moved])
    firsts = [psnr_db(clip.frames[0], clip.picture) for clip in clips if clip.picture is not None]
    if firsts:
        found["first_frame_db"] = _mean(firsts)
    if exact is not None:
        pairs = zip(clips, exact[: len(clips)], strict=True)
        found["exact_db"] = _mean([psnr_db(clip.frames, other.frames) for clip, other in pairs])
    return found


def sheet(clips: Sequence[Clip], target: Path) -> None:
    """A PNG with four frames of every clip side by side, `_COLUMNS` clips to a row.

    Under each stands what was asked, in red where the judge saw another colour or motion.
    """
    cells = [_cell(clip) for clip in clips]
    width, height = cells[0].size
    lines = -(-len(cells) // _COLUMNS)
    canvas = Image.new("RGB", (_COLUMNS * width, lines * height), "white")
    for number, cell in enumerate(cells):
        canvas.paste(cell, (number % _COLUMNS * width, number // _COLUMNS * height))
    target.parent.mkdir(parents=True, exist_ok=True)
    canvas.quantize(128, dither=Image.Dither.NONE).save(target, optimize=True)


def _cell(clip: Clip) -> Image.Image:
    cell = Image.new("RGB", (len(_SHEET_FRAMES) * _SHEET_WIDTH + 8, _SHEET_WIDTH + 18), "white")
    for place, number in enumerate(_SHEET_FRAMES):
        frame = Image.fromarray(clip.frames[min(number, len(clip.frames) - 1)])
        cell.paste(frame.resize((_SHEET_WIDTH, _SHEET_WIDTH)), (place * _SHEET_WIDTH, 0))
    scene, verdict = clip.scene, judge(clip.frames)
    right = (verdict.colour, verdict.motion) == (scene.colour, scene.motion)
    asked = f"{scene.colour} {scene.shape}, {scene.motion}, {scene.ground}"
    if scene.camera != "none":
        asked += f", {scene.camera}"
        right = right and camera(clip.frames) == scene.camera
    ImageDraw.Draw(cell).text((1, _SHEET_WIDTH + 1), asked, fill="black" if right else "red", font_size=12)
    return cell


def _share(right: Sequence[bool]) -> float:
    return sum(right) / len(right)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def measure(
    studio: Studio, cases: Sequence[Case], *, prompts: int, each: int, steps: int
) -> tuple[dict[str, dict[str, float]], dict[str, list[Clip]]]:
    """Figures and clips by the name of the case."""
    scenes = asked_scenes(prompts)
    made: dict[str, list[Clip]] = {"drawn": drawn(scenes)}
    table = {"drawn": figures(made["drawn"], None)}
    for case in cases:
        asked = asked_scenes(each, moves=True) if case.moves else scenes[: prompts if case.all_prompts else each]
        made[case.name] = studio.clips(case, asked, steps)
        table[case.name] = figures(made[case.name], made.get(case.against))
        print(_line(case.name, table[case.name]), flush=True)
    return table, made


def _line(name: str, found: dict[str, float]) -> str:
    values = "  ".join(f"{key} {value:.3g}" for key, value in found.items())
    return f"{name:<22} {values}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--each", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help=", ".join(case.name for case in CASES))
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    cases = [case for case in CASES if not options.only or case.name in options.only]
    began = time.perf_counter()
    with Studio() as studio:
        table, made = measure(studio, cases, prompts=options.prompts, each=options.each, steps=options.steps)
    for name in ("exact", "camera", "image", "turbo", "style"):
        if name in made:
            sheet(made[name], SHEET / f"demo-{name}.png")
    day = datetime.now(UTC).date().isoformat()
    result: dict[str, Any] = {
        "date": day,
        "size": f"{SIZE}x{SIZE}x17",
        "steps": options.steps,
        "machine": {"threads": torch.get_num_threads(), **reporting.machine("torch", "diffusers")},
        "minutes": round((time.perf_counter() - began) / 60, 1),
        "cases": {name: {key: round(value, 4) for key, value in found.items()} for name, found in table.items()},
    }
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"quality-{options.steps}-steps-{day}.json"
    if options.only and path.exists():  # the cases of an earlier call stay
        earlier = json.loads(path.read_text(encoding="utf-8"))
        result["cases"] = earlier["cases"] | result["cases"]
        result["minutes"] = round(earlier["minutes"] + result["minutes"], 1)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
