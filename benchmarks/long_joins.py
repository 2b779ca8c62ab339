"""What is read from the frames of videos of several segments: does the object go on, and how do they join."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw

from training.judging import judge, place
from training.scenes import Scene
from worker.media.seams import step

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "longer-join.png"
PICTURED = 4
WIDTH = 80
# Half of the way that a slow object goes in a clip, over the 16 steps of one: less is no motion.
LEAST_STEP = 0.085 / 16


def joined(videos: Sequence[dict[str, Any]], scenes: Sequence[Scene]) -> dict[str, Any]:
    """What videos of `scenes`, as a result lists them, show: shares of segments and of videos, ways, seams, drift."""
    seams = [each["seam"] for video in videos for each in video["segments"][1:] if each["seam"] is not None]
    segments = [[_segment(video, number) for number in range(len(video["segments"]))] for video in videos]
    right = np.array(
        [[_motion(frames) == scene.motion for frames in parts] for parts, scene in zip(segments, scenes, strict=True)]
    )
    return {
        "goes_on": float(right.mean()),
        "goes_on_to_the_end": float(right.all(1).mean()),
        "goes_on_by_segment": right.mean(0).tolist(),
        "way_by_segment": [float(np.median([_way(part) for part in parts])) for parts in zip(*segments, strict=True)],
        "seam_median": float(np.median(seams)),
        "seam_worst": float(np.max(seams)),
        "seam_of_latents": float(np.median([seam for video in videos for seam in _seams_of_latents(video)])),
        "drift_last_segment": float(np.median([video["segments"][-1]["color_drift"] for video in videos])),
    }


def looped(videos: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The step from the last frame to the first over the median step: 1 or less is a loop that nobody sees."""
    found = []
    for frames in map(frames_of, videos):
        found.append(step(frames[-1], frames[0]) / float(np.median([step(*pair) for pair in pairwise(frames)])))
    return {
        "step_median": float(np.median(found)),
        "step_worst": float(np.max(found)),
        "not_larger": float(np.mean([each <= 1 for each in found])),
    }


def _seams_of_latents(video: dict[str, Any]) -> list[float]:
    """For each join the step across it over the median step from one latent frame, which has four, to the next."""
    steps = [step(before, after) for before, after in pairwise(frames_of(video))]
    found = []
    for segment in video["segments"][1:]:
        at = segment["first_frame"]
        between = float(np.median(steps[at + 3 : at + segment["num_frames"] - 1 : 4]))
        found += [steps[at - 1] / between] if between else []
    return found


def _way(frames: np.ndarray) -> float:
    """How far the object goes from the first frame to the last, in units of the shorter side; 0 where none is seen."""
    begins, ends = place(frames[:1]), place(frames[-1:])
    return 0.0 if begins is None or ends is None else float(np.hypot(*np.subtract(ends, begins)))


def _motion(frames: np.ndarray) -> str | None:
    """Of every third frame: between two of these a slow object goes as far as others do from one to the next."""
    return judge(frames[::3], far=LEAST_STEP * (len(frames) - 1)).motion


def _segment(video: dict[str, Any], number: int) -> np.ndarray:
    """The frames of a segment, and the one before it, with which it begins."""
    segment = video["segments"][number]
    first = max(0, segment["first_frame"] - 1)
    return frames_of(video)[first : segment["first_frame"] + segment["num_frames"]]


def frames_of(video: dict[str, Any]) -> np.ndarray:
    with av.open(video["video_url"].removeprefix("file://")) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def draw_joins(videos: Sequence[dict[str, Any]]) -> None:
    """Frames around the joins, a line for each video; the first frames of segments have red names."""
    firsts = [segment["first_frame"] for segment in videos[0]["segments"]]
    shown = [0, *(frame for first in firsts[1:] for frame in (first - 1, first, first + 7))]
    canvas = Image.new("RGB", (len(shown) * (WIDTH + 2), len(videos) * (WIDTH + 18)), "white")
    for line, frames in enumerate(map(frames_of, videos)):
        for column, number in enumerate(shown):
            corner = (column * (WIDTH + 2), line * (WIDTH + 18))
            canvas.paste(Image.fromarray(frames[number]).resize((WIDTH, WIDTH)), corner)
            name = (corner[0] + 1, corner[1] + WIDTH + 1)
            colour = "red" if number in firsts[1:] else "black"
            ImageDraw.Draw(canvas).text(name, f"frame {number}", fill=colour, font_size=11)
    canvas.quantize(128, dither=Image.Dither.NONE).save(PICTURE, optimize=True)
