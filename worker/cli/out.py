"""Where `--out` puts videos and posters: judged before anything is made, written whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

from worker.cli.failures import usage
from worker.request.payload import OutputFormat

SUFFIXES = tuple(f".{name}" for name in get_args(OutputFormat))
POSTER_SUFFIX = ".jpg"
FRAMES_SUFFIX = ".zip"
PREVIEW_SUFFIX = ".preview.webp"


@dataclass(frozen=True, slots=True)
class Place:
    """Where one video, its poster, its frames and its preview go."""

    video: Path

    @property
    def poster(self) -> Path:
        return self.video.with_suffix(POSTER_SUFFIX)

    @property
    def frames(self) -> Path:
        return self.video.with_suffix(FRAMES_SUFFIX)

    @property
    def preview(self) -> Path:
        return self.video.with_suffix(PREVIEW_SUFFIX)


@dataclass(frozen=True, slots=True)
class Out:
    """`--out`: a name with a video's suffix, or a folder. `force` writes over what is there."""

    path: Path
    is_folder: bool
    force: bool

    @classmethod
    def of(cls, text: str, *, force: bool) -> Out:
        """Raises the error of a usage where nothing can be written there."""
        path = Path(text).expanduser()
        is_folder = text.endswith(os.sep) or path.is_dir()
        if not is_folder and path.suffix not in SUFFIXES:
            known = ", ".join(SUFFIXES)
            raise usage(f"--out: write a name that ends in one of {known}, or a folder with {os.sep} behind it")
        folder = path if is_folder else path.parent
        if not is_folder and not folder.is_dir():
            raise usage(f"--out: there is no folder {folder}")
        if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
            raise usage(f"--out: nothing may be written into {folder}")
        return cls(path, is_folder, force)

    @property
    def suffix(self) -> str:
        """That of a video's name, where it may have any."""
        return SUFFIXES[0] if self.is_folder else self.path.suffix

    def place(self, job_id: str, index: int, count: int, suffix: str) -> Place:
        """The place of video `index` of `count`, a file with `suffix`."""
        number = f"-{index}" if count > 1 else ""
        stem = safe(job_id) if self.is_folder else self.path.stem
        folder = self.path if self.is_folder else self.path.parent
        return Place(folder / f"{stem}{number}{suffix}")

    def check(self, suffixes: Sequence[str], *, posters: bool) -> None:
        """Raises the error of a usage where a named file cannot be one of the videos' `suffixes`, or is there already
        and may not be written over."""
        if self.is_folder:
            return
        for index, suffix in enumerate(suffixes):
            if self.path.suffix != suffix:
                raise usage(
                    f"--out: the video is a {suffix} file: give a name that ends so, or another --output-format"
                )
            place = self.place("", index, len(suffixes), suffix)
            for path in (place.video, place.poster) if posters else (place.video,):
                if path.exists() and not self.force:
                    raise usage(f"--out: {path} is there already: give another name, or --force")


def suffix_of(url: str) -> str:
    """The suffix of the video at `url`; that of an MP4 where the address does not say."""
    suffix = Path(urlsplit(url).path).suffix
    return suffix if suffix in SUFFIXES else SUFFIXES[0]


def safe(name: str) -> str:
    """A name that came from elsewhere as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".") or "job"


def copy(source: Path, target: Path, *, force: bool) -> None:
    """Copy beside the target, then move it there. Raises OSError; FileExistsError where it is there and not `force`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        shutil.copyfile(source, part)
        publish(part, target, force=force)
    finally:
        part.unlink(missing_ok=True)


def publish(part: Path, target: Path, *, force: bool) -> None:
    """Give a finished file its name. Raises FileExistsError where another has it and not `force`."""
    if not force and target.exists():
        raise FileExistsError(f"{target} is there already")
    part.replace(target)
