"""The data set of a training: pictures and videos of an archive or a folder, as frames on the disk, with captions.

One file is decoded at a time, by the decoders of the requests' own pictures and videos. What cannot be used is left
out, with the reason in the report.
"""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from worker.base.errors import Cancelled, InputInvalid
from worker.base.files import sha256_of
from worker.media import cropped_share, fit
from worker.media.decode_video import open_video
from worker.media.inputs import decode_image
from worker.net.opener import IMAGE_LIMITS, MEGABYTE, VIDEO_LIMITS
from worker.request.training import TrainingRequest
from worker.training.archive import DATA_PATH, Files, files_in, refusal, shown
from worker.training.captions import is_caption, read_captions

VIDEOS = frozenset({".mp4", ".m4v", ".mov", ".webm", ".mkv"})
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
# Fewer are all trained on: one of three held out would be missed.
MIN_TO_HOLD_OUT = 4
MAX_REPORTED = 200
SPARE_DISK_BYTES = 1_000_000_000
_NAMED_REASONS = 3


@dataclass(frozen=True, slots=True)
class Clip:
    """One picture or video of the set, at the request's size and the model's rate.

    `name` is its path inside the archive; `caption` has the trigger phrase before it. `frames` is an .npy file, uint8
    [F, H, W, 3] RGB, for `np.load(..., mmap_mode="r")`; F is 1 for a picture, else `frame_stride` * k + 1. `cropped` is
    the share of the picture's area, 0 to 1, that is outside the frame.
    """

    name: str
    caption: str
    frames: Path
    num_frames: int = 1
    cropped: float = 0.0


@dataclass(frozen=True, slots=True)
class Refused:
    """A file that is not used, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """What is trained on (at least one) and what is held out, which is none of them; each in the order of names.

    `held_out` is empty where there are too few.
    """

    clips: tuple[Clip, ...]
    held_out: tuple[Clip, ...]
    refused: tuple[Refused, ...]

    def report(self) -> dict[str, Any]:
        """`dataset` of the result: what was used, what was refused and why, MAX_REPORTED of each at most."""
        used = sorted((*self.clips, *self.held_out), key=lambda clip: clip.name)
        held_out = {clip.name for clip in self.held_out}
        return {
            "clips": len(self.clips),
            "held_out": len(self.held_out),
            "refused": len(self.refused),
            "used_files": [
                {
                    "name": clip.name,
                    "num_frames": clip.num_frames,
                    "cropped": round(clip.cropped, 3),
                    "held_out": clip.name in held_out,
                }
                for clip in used[:MAX_REPORTED]
            ],
            "refused_files": [{"name": each.name, "reason": each.reason} for each in self.refused[:MAX_REPORTED]],
        }


def read_dataset(archive_or_folder: Path, into: Path, request: TrainingRequest, *, stop: threading.Event) -> Dataset:
    """Decode the pictures and videos of a ZIP or a folder to files in the folder `into`.

    Raises InputInvalid, with the path `train.training_data_url`, for a set that is not safe to unpack or of which
    nothing can be used; Cancelled; and OSError where the disk fails.
    """
    clips: list[Clip] = []
    with files_in(archive_or_folder) as files:
        reading = _Reading(files, into, request, stop)
        media = [name for name in sorted(files.sizes) if PurePosixPath(name).suffix.lower() in VIDEOS | PICTURES]
        _check_disk(media, into, request)
        captions = read_captions(media, files.sizes, lambda name: files.at(name, reading.spare).read_bytes())
        refused = {
            name: "is no video, picture or caption by its name"
            for name in files.sizes
            if name not in media and not is_caption(name)
        }
        refused |= captions.refused
        for name in media:
            if (caption := captions.texts.get(name)) is not None:
                made = reading.clip(name, _triggered(request.trigger_phrase, caption), len(clips))
                if isinstance(made, Clip):
                    clips.append(made)
                else:
                    refused[name] = made
    reading.spare.unlink(missing_ok=True)
    if not clips:
        first = "; ".join(f"{shown(name)}: {reason}" for name, reason in sorted(refused.items())[:_NAMED_REASONS])
        raise refusal(f"nothing of the set can be used. {first or 'It has no files'}")
    held_out = _held_out(len(clips), request)
    return Dataset(
        tuple(clip for number, clip in enumerate(clips) if number not in held_out),
        tuple(clips[number] for number in sorted(held_out)),
        tuple(Refused(shown(name), reason) for name, reason in sorted(refused.items())),
    )


@dataclass(frozen=True, slots=True)
class _Reading:
    """Decodes one file after the other; `seen` has the names of those that were used, by their SHA-256."""

    files: Files
    into: Path
    request: TrainingRequest
    stop: threading.Event
    seen: dict[str, str] = field(default_factory=dict)

    @property
    def spare(self) -> Path:
        """Where one file of a ZIP is unpacked."""
        return self.into / "unpacked"

    def clip(self, name: str, caption: str, number: int) -> Clip | str:
        """The clip of a file, or why it is not used. Raises InputInvalid where the ZIP is damaged, and Cancelled."""
        if self.stop.is_set():
            raise Cancelled("the job was stopped while its training data was read")
        is_video = PurePosixPath(name).suffix.lower() in VIDEOS
        most_bytes = (VIDEO_LIMITS if is_video else IMAGE_LIMITS).max_bytes
        if (size_bytes := self.files.sizes[name]) > most_bytes:
            return f"has {size_bytes / MEGABYTE:.0f} MB: send at most {most_bytes // MEGABYTE} MB"
        file = self.files.at(name, self.spare)
        digest = sha256_of(file)
        if digest in self.seen:
            return f"has the same bytes as {shown(self.seen[digest])}"
        try:
            size, frames = self._video(file) if is_video else self._picture(file)
        except InputInvalid as unusable:
            return unusable.message
        self.seen[digest] = name
        target = self.into / f"{number:05d}.npy"
        _store(frames, target)
        return Clip(
            name,
            caption,
            target,
            num_frames=len(frames),
            cropped=cropped_share(size, self.request.width, self.request.height),
        )

    def _video(self, file: Path) -> tuple[tuple[int, int], list[Image.Image]]:
        """The size of a video, width and height, and its frames. Raises InputInvalid, Cancelled."""
        request, spec = self.request, self.request.model
        video = open_video(file, path=DATA_PATH, stop=self.stop)
        self._check_size(video.size)
        frames = video.frames(
            fps=spec.fps, width=request.width, height=request.height, max_frames=request.num_frames, stop=self.stop
        )
        least = min(request.num_frames, spec.frame_stride + 1)
        if len(frames) < least:
            raise refusal(f"has {len(frames)} frames at {spec.fps} fps: send a video of at least {least}")
        return video.size, frames[: (len(frames) - 1) // spec.frame_stride * spec.frame_stride + 1]

    def _picture(self, file: Path) -> tuple[tuple[int, int], list[Image.Image]]:
        image = decode_image(file.read_bytes(), path=DATA_PATH, stop=self.stop)
        self._check_size(image.size)
        return image.size, [fit(image, self.request.width, self.request.height)]

    def _check_size(self, size: tuple[int, int]) -> None:
        wanted = (self.request.width, self.request.height)
        if not self.request.auto_scale_input and size != wanted:
            raise refusal(
                f"is {size[0]}x{size[1]}, not {wanted[0]}x{wanted[1]}: send it at that size, or auto_scale_input true"
            )


def _store(frames: Sequence[Image.Image], target: Path) -> None:
    """Write RGB frames of one size as an .npy file. Raises OSError: a map of a full disk would end the process."""
    width, height = frames[0].size
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(frames), height, width, 3)}
    with target.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for frame in frames:
            file.write(frame.tobytes())


def _triggered(trigger: str, caption: str) -> str:
    """The caption behind the trigger phrase, which is not said twice."""
    return caption if not trigger or caption.casefold().startswith(trigger.casefold()) else f"{trigger}, {caption}"


def _held_out(count: int, request: TrainingRequest) -> frozenset[int]:
    """Which of `count` clips are held out: the share that is asked for, one at least; none of too few."""
    if request.validation_split == 0 or count < MIN_TO_HOLD_OUT:
        return frozenset()
    number = max(1, round(count * request.validation_split))
    return frozenset(random.Random(request.seed).sample(range(count), number))


def _check_disk(media: Sequence[str], into: Path, request: TrainingRequest) -> None:
    """Refuse a set whose frames would fill the disk."""
    videos = sum(PurePosixPath(name).suffix.lower() in VIDEOS for name in media)
    frames = videos * request.num_frames + len(media) - videos
    needed_bytes, free_bytes = frames * request.width * request.height * 3, shutil.disk_usage(into).free
    if needed_bytes > free_bytes - SPARE_DISK_BYTES:
        raise refusal(
            f"{len(media)} files may take {needed_bytes / 1e9:.1f} GB decoded, and the worker has "
            f"{free_bytes / 1e9:.1f} GB of disk: send fewer files, fewer frames or a lower resolution"
        )
