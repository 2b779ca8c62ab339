"""Data sets for trainings: tiny videos and pictures, ZIPs of them, and what is done to a ZIP to harm its reader."""

from __future__ import annotations

import functools
import io
import struct
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio_ffmpeg
from PIL import Image

from worker.request.catalogue import DEMO_CATALOGUE
from worker.request.training import TrainingRequest, parse_training

ZIP_URL = "https://example.com/style.zip"
CENTRAL, LOCAL, END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"
# Offsets of fields in a header of the central directory (APPNOTE 4.3.12).
FLAGS, METHOD, CRC, PACKED, UNPACKED, ATTRIBUTES = 8, 10, 16, 20, 24, 38


@functools.cache
def movie(size: str = "64x48", seconds: float = 1.0, rate: int = 16, suffix: str = ".mp4") -> bytes:
    """A grey field that brightens by 100 of 219 steps a second, from the tenth on."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"movie{suffix}")
        pattern = f"nullsrc=s={size}:r={rate}:d={seconds},geq=lum='26+T*100':cb=128:cr=128"
        options = ("-f", "lavfi", "-i", pattern, "-pix_fmt", "yuv420p", "-threads", "1")
        subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *options, str(file)], check=True)
        return file.read_bytes()


@functools.cache
def picture(colour: tuple[int, int, int] = (200, 40, 40), size: tuple[int, int] = (64, 48)) -> bytes:
    """A PNG of one colour."""
    written = io.BytesIO()
    Image.new("RGB", size, colour).save(written, "PNG")
    return written.getvalue()


def zipped(files: Mapping[str, bytes | str], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", method) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = method
            archive.writestr(entry, content)
    return written.getvalue()


def small_set(**more: bytes | str) -> dict[str, bytes | str]:
    """A picture with its caption, and `more`."""
    return {"a.png": picture(), "a.txt": "a red field", **more}


def patched(data: bytes, field: int, value: int, form: str = "<H", *, where: bytes = CENTRAL) -> bytes:
    """A ZIP with another value in one field of its first header of that kind."""
    changed = bytearray(data)
    struct.pack_into(form, changed, data.index(where) + field, value)
    return bytes(changed)


def training_request(*, width: int = 64, height: int = 48, num_frames: int = 9, **fields: Any) -> TrainingRequest:
    """A request for the demo model, at a size that decodes in no time."""
    payload = {"train": {"training_data_url": ZIP_URL, "seed": 1, **fields}}
    request = parse_training(payload, default_job_id="rp-1", catalogue=DEMO_CATALOGUE).train
    return replace(request, width=width, height=height, num_frames=num_frames)
