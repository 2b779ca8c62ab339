"""The files of finished videos: fetched from the worker's storage once, checked, and kept up to a size."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from ..downloads import File
from ..types import VideoResult
from .backend import Backend
from .refusal import Refused

Variant = Literal["video", "thumbnail", "spritesheet"]
FILES: Mapping[Variant, File] = {"video": "video", "thumbnail": "thumbnail", "spritesheet": "preview"}
_MISSING = {
    "video": "the video has no file: it was asked for with preview_only",
    "thumbnail": "the video has no thumbnail: it was asked for without one",
    "spritesheet": 'the video has no preview: ask for it with extra_params {"preview": "strip"}',
}
DOWNLOAD_WITHIN_S = 1800.0


class Content:
    """`limit_bytes` is what all files together may have; the ones used least recently go first."""

    def __init__(self, backend: Backend, folder: Path, limit_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._backend = backend
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._locks: dict[str, asyncio.Lock] = {}

    async def fetched(self, video_id: str, result: Mapping[str, Any], variant: Variant) -> Path:
        """Raises Refused where the video has no such file, and VideoGenError."""
        file = FILES[variant]
        url = result.get(f"{file}_url")
        if url is None and not (file == "video" and result.get("video_base64") is not None):
            raise Refused(404, _MISSING[variant], param="variant", code="not_found")
        suffix = PurePosixPath(urlsplit(url).path).suffix if isinstance(url, str) else ".mp4"
        path = self._folder / f"{video_id}.{file}{suffix}"
        lock = self._locks.setdefault(path.name, asyncio.Lock())
        async with lock:
            if not path.exists():
                await self._backend.download(cast(VideoResult, result), path, file=file, timeout_s=DOWNLOAD_WITHIN_S)
                self._shrink(keep=path)
            path.touch()
        self._locks.pop(path.name, None)
        return path

    def remove(self, video_id: str) -> None:
        for path in self._folder.glob(f"{video_id}.*"):
            path.unlink(missing_ok=True)

    def _shrink(self, keep: Path) -> None:
        """A file that is being sent stays readable for the one who has it open."""
        files = sorted((path for path in self._folder.iterdir() if path.is_file()), key=lambda p: p.stat().st_mtime)
        total = sum(path.stat().st_size for path in files)
        for path in files:
            if total <= self._limit_bytes:
                break
            if path != keep and not path.name.startswith("."):
                total -= path.stat().st_size
                path.unlink(missing_ok=True)
