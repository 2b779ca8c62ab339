"""Where `--out` puts videos and posters: judged before anything is made, written whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from worker.cli.failures import usage

VIDEO_SUFFIX = ".mp4"
POSTER_SUFFIX = ".jpg"


@dataclass(frozen=True, slots=True)
class Place:
    """Where one video and its poster go."""

    video: Path

    @property
    def poster(self) -> Path:
        return self.video.with_suffix(POSTER_SUFFIX)


@dataclass(frozen=True, slots=True)
class Out:
    """`--out`: a name that ends in .mp4, or a folder. `force` writes over what is there."""

    path: Path
    is_folder: bool
    force: bool

    @classmethod
    def of(cls, text: str, *, force: bool) -> Out:
        """Raises the error of a usage where nothing can be written there."""
        path = Path(text).expanduser()
        is_folder = text.endswith(os.sep) or path.is_dir()
        if not is_folder and path.suffix != VIDEO_SUFFIX:
            raise usage(f"--out: write a name that ends in {VIDEO_SUFFIX}, or a folder with {os.sep} behind it")
        folder = path if is_folder else path.parent
        if not is_folder and not folder.is_dir():
            raise usage(f"--out: there is no folder {folder}")
        if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
            raise usage(f"--out: nothing may be written into {folder}")
        return cls(path, is_folder, force)

    def place(self, job_id: str, index: int, count: int) -> Place:
        """The place of video `index` of `count`."""
        number = f"-{index}" if count > 1 else ""
        if self.is_folder:
            return Place(self.path / f"{safe(job_id)}{number}{VIDEO_SUFFIX}")
        return Place(self.path.with_name(f"{self.path.stem}{number}{VIDEO_SUFFIX}"))

    def check_free(self, count: int, *, posters: bool) -> None:
        """Raises the error of a usage where a named file is there already and may not be written over."""
        if self.is_folder or self.force:
            return
        for index in range(count):
            place = self.place("", index, count)
            for path in (place.video, place.poster) if posters else (place.video,):
                if path.exists():
                    raise usage(f"--out: {path} is there already: give another name, or --force")


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
