"""ffmpeg and libx264: a few frames are really encoded."""

from __future__ import annotations

from collections.abc import Iterator

import imageio_ffmpeg
import numpy as np

from worker.base import scratch
from worker.base.errors import EncodeFailed
from worker.doctor.deployment import Deployment
from worker.doctor.report import Finding, fail, ok
from worker.media.encode import encode

_FRAMES = 5
_SIDE = 64


def check(deployment: Deployment) -> Finding:
    """Encodes a video and its poster as a job would."""
    try:
        with scratch.folder("doctor", deployment.temporary) as home:
            video = encode(
                _frames(),
                path=home / "probe.mp4",
                width=_SIDE,
                height=_SIDE,
                num_frames=_FRAMES,
                fps=16,
                poster=home / "probe.jpg",
                ffmpeg=deployment.ffmpeg,
            )
    except EncodeFailed as failure:
        return fail(
            failure.message.removesuffix("; try again"),
            "install imageio-ffmpeg again, whose ffmpeg has libx264 (the image has it), and unset IMAGEIO_FFMPEG_EXE; "
            "the log holds what ffmpeg said",
            stops_jobs=True,
        )
    except OSError as failure:
        found = f"no video can be written to {deployment.temporary} ({type(failure).__name__})"
        return fail(found, "make the temporary folder writable, or set TMPDIR to another", stops_jobs=True)
    version = f"{imageio_ffmpeg.get_ffmpeg_version()}, " if deployment.ffmpeg is None else ""
    return ok(f"{version}libx264: {_FRAMES} frames became {video.size_bytes} bytes")


def _frames() -> Iterator[np.ndarray]:
    for number in range(_FRAMES):
        frame = np.zeros((_SIDE, _SIDE, 3), np.uint8)
        frame[:, : 8 * (number + 1)] = (255, 128, 0)
        yield frame
