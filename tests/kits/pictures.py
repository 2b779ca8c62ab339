"""Pictures and clips as callers send them, and what a colour in them has become."""

from __future__ import annotations

import base64
import io
import subprocess
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pillow_heif
from PIL import Image

from worker.media import decode_video, inputs
from worker.net import Opener

PATH = "job_request_params[0].reference_image_url"
OPENER = Opener(["127.0.0.1"])
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
pillow_heif.register_heif_opener()  # this process writes them; the sandbox reads with pi-heif


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def uri(encoded: bytes, subtype: str = "png") -> str:
    return f"data:image/{subtype};base64,{base64.b64encode(encoded).decode()}"


def load(encoded: bytes) -> Image.Image:
    return inputs.load_image(uri(encoded), opener=OPENER, path=PATH)


def quarters(size: int = 32) -> Image.Image:
    """Red, green / blue, white."""
    image = Image.new("RGB", (size, size), WHITE)
    half = size // 2
    image.paste(RED, (0, 0, half, half))
    image.paste(GREEN, (half, 0, size, half))
    image.paste(BLUE, (0, half, half, size))
    return image


def near(image: Image.Image, at: tuple[int, int], colour: tuple[int, int, int], tolerance: int = 12) -> bool:
    assert image.mode == "RGB"
    found = image.getpixel(at)
    assert isinstance(found, tuple)
    return all(abs(a - b) <= tolerance for a, b in zip(found, colour, strict=True))


def ffmpeg(*arguments: str | Path) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)], check=True)


def clip(folder: Path, name: str, *options: str, size: str = "64x48", seconds: float = 1, rate: int = 30) -> Path:
    """A test pattern in motion."""
    file = folder / name
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=s={size}:r={rate}:d={seconds}", *options, file)
    return file


def frames_of(file: Path, **asked: Any) -> list[Image.Image]:
    video = decode_video.open_video(file, path=PATH)
    return video.frames(**{"fps": 16, "width": 64, "height": 48, "max_frames": 81, **asked})
