"""What the marks of AI origin cost: bytes and milliseconds of each format, without and with a key and a time stamp.

    python -m benchmarks.marks
    python -m benchmarks.marks --videos 200

The second makes as many videos by whole jobs on the demo model, of all modes and formats in turn, and verifies them
against the root of an authority that it makes for itself, as they are and with a bit of the media changed. A local RFC
3161 authority (`openssl ts`) gives the time stamps. Writes `benchmarks/results/marks-DATE.json`; ends with 1 where one
is not what it should be.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import SecretStr

from benchmarks import reporting
from benchmarks.reporting import RESULTS
from tests.kits.c2pa_kit import Authority
from tests.kits.loopback import Server, response
from worker.base.settings import Settings
from worker.jobs import flow
from worker.media import FORMATS
from worker.media.encode import encode
from worker.media.marks import reading
from worker.media.marks.marker import Marker
from worker.media.marks.provenance import Origin
from worker.media.marks.signing import SigningKey
from worker.request.settle import CODECS
from worker.request.values import Output
from worker.start import build_worker

WIDTH, HEIGHT, FRAMES, FPS = 832, 480, 81, 16
TRIES = 5
MODEL = "wan2.2-t2v-a14b"
# What makes each mode, by field.
MODES = {
    "text_to_video": {},
    "image_to_video": {"reference_image_url": "picture"},
    "first_last_frame": {"reference_image_url": "picture", "last_image_url": "picture"},
    "video_to_video": {"reference_video_url": "video"},
}


def clip(seed: int = 0, width: int = WIDTH, height: int = HEIGHT, count: int = FRAMES) -> Iterator[np.ndarray]:
    """Moving bands of few colours, which a GIF takes quickly; each `seed` begins elsewhere."""
    rows, columns = np.mgrid[0:height, 0:width]
    for number in range(count):
        waves = [rows + number * 3 + seed, columns - number * 2, rows + columns]
        yield (np.stack(waves, axis=2) % 256 // 64 * 64).astype(np.uint8)


def costs(folder: Path, marker: Marker, path: Path, content_type: str) -> tuple[int, float]:
    """By how many bytes a copy of `path` grows, and the median of the milliseconds."""
    taken = []
    copy = folder / f"copy{path.suffix}"
    for _ in range(TRIES):
        shutil.copy(path, copy)
        began = time.perf_counter()
        marker.mark_file(copy, content_type, Origin(MODEL))
        taken.append(1000 * (time.perf_counter() - began))
    return copy.stat().st_size - path.stat().st_size, statistics.median(taken)


def table(folder: Path, markers: dict[str, Marker]) -> None:
    print(f"| {WIDTH}x{HEIGHT}, {FRAMES} frames | bytes | " + " | ".join(markers) + " |")
    print("| --- | --- |" + " --- |" * len(markers))
    for name, codecs in CODECS.items():
        for codec in codecs:
            path = folder / f"{codec}{FORMATS[name].suffix}"
            beside = (
                {"poster": folder / "0.jpg", "frames_zip": folder / "0.zip"} if codec == "h264" else {"poster": None}
            )
            output = Output(format=name, codec=codec)
            encode(clip(), path=path, width=WIDTH, height=HEIGHT, num_frames=FRAMES, fps=FPS, output=output, **beside)
            row(folder, markers, f"{name}, {codec}", path, FORMATS[name].content_type)
    row(folder, markers, "poster", folder / "0.jpg", "image/jpeg")
    row(folder, markers, "ZIP of frames", folder / "0.zip", "application/zip")


def row(folder: Path, markers: dict[str, Marker], label: str, path: Path, content_type: str) -> None:
    cells = []
    for marker in markers.values():
        grown, took = costs(folder, marker, path, content_type)
        cells.append(f"+{grown:,} B, {took:.0f} ms")
    print(f"| {label} | {path.stat().st_size:,} | " + " | ".join(cells) + " |", flush=True)


def payloads(base: str, count: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """`count` small requests of one video each, with mode and format: every mode in every format, again and again."""
    kinds = [(mode, name, codec) for name, codecs in CODECS.items() for codec in codecs for mode in MODES]
    for number, (mode, name, codec) in enumerate(islice(cycle(kinds), count)):
        fields = {field: f"{base}/{kind}" for field, kind in MODES[mode].items()}
        tiny = {"height": 256, "width": 256, "num_frames": 5, "num_inference_steps": 2, "seed": number}
        output = {"output_format": name, **({} if codec == name else {"output_codec": codec})}
        yield mode, f"{name}, {codec}", {"prompt": "a cat", **tiny, **fields, **output}


def verified(folder: Path, authority: Authority, tsa_url: str, count: int) -> dict[str, Any]:
    """What a reader says of `count` videos of whole jobs that were signed and time-stamped, and of each with one bit of
    its media changed. What cannot be signed (WebM) has metadata alone."""
    signer = authority.issue()
    settings = Settings(
        model_profile="demo",
        private_url_allowlist=("127.0.0.1",),
        state_dir=folder / "state",
        output_dir=folder / "outputs",
        c2pa_cert_chain=signer.chain,
        c2pa_private_key=SecretStr(signer.key),
        c2pa_tsa_url=tsa_url,
    )
    worker = build_worker(settings)
    states: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    with Server(lambda connection, request: connection.sendall(_sent(folder, request))) as inputs:
        for mode, kind, request in payloads(inputs.url(""), count):
            event = {"id": f"marked-{request['seed']}", "input": {"job_request_params": [request]}}
            (video,) = asyncio.run(flow.run(event, worker, lambda _: None))["videos"]
            path = Path(video["video_url"].removeprefix("file://"))
            marks = reading.read(path, trust_anchors=authority.root)
            states[f"{kind}: {marks.state}" + (", with a time stamp" if marks.signed_at else "")] += 1
            modes[f"{mode}: {marks.digital_source_type}"] += 1
            if request["output_format"] != "webm":
                _change_a_bit(path, request["seed"])
                states[f"{kind}, a bit of the media changed: {reading.read(path).state}"] += 1
            path.unlink()
    worker.gpu.shutdown()
    return {"videos": count, "states": dict(states), "modes": dict(modes)}


def _sent(folder: Path, request: bytes) -> bytes:
    """The picture or video that a request asks for."""
    if request.split()[1].endswith(b"/video"):
        path = folder / "input.mp4"
        if not path.exists():
            encode(clip(0, 256, 256, 9), path=path, width=256, height=256, num_frames=9, fps=FPS, poster=None)
        return response(path.read_bytes(), headers="Content-Type: video/mp4")
    stream = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(stream, "PNG")
    return response(stream.getvalue(), headers="Content-Type: image/png")


def _change_a_bit(path: Path, number: int) -> None:
    """Of a byte of the media: behind `mdat` of an MP4, in the last pictures of a GIF, in the first of a WebP."""
    content = bytearray(path.read_bytes())
    begin, end = {
        ".mp4": lambda: (content.index(b"mdat") + 4, len(content)),
        ".gif": lambda: (len(content) - 2000, len(content) - 2),
        ".webp": lambda: (content.index(b"ANMF") + 40, content.index(b"C2PA") - 8),
    }[path.suffix]()
    content[begin + number * 7919 % (end - begin)] ^= 1
    path.write_bytes(content)


def is_as_expected(state: str) -> bool:
    """Of a line of `verified`."""
    if state.startswith("webm"):
        return state.endswith(": tagged")
    return state.endswith((": trusted, with a time stamp", "a bit of the media changed: changed"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, metavar="N", help="make, sign and verify N videos, in place of the table")
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    authority = Authority()
    signer = authority.issue()
    key = SigningKey.load(signer.chain, signer.key)
    with ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory()))
        url = ends.enter_context(authority.time_stamps())
        stamped = Marker(key=key, tsa_url=url)
        if chosen.videos is None:
            table(folder, {"metadata": Marker(), "signed": Marker(key=key), "signed, time stamp": stamped})
            return 0
        found = verified(folder, authority, url, chosen.videos)
        print(json.dumps(found, indent=2))
        reporting.write(chosen.output, "marks", found, "c2pa-python")
        return 0 if all(map(is_as_expected, found["states"])) else 1


if __name__ == "__main__":
    sys.exit(main())
