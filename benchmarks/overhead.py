"""What a job takes beside the model: seconds of whole demo jobs that are neither loading, text, steps nor decoding.

    python -m benchmarks.overhead              832x480 with 33 and 81 frames, three jobs each
    python -m benchmarks.overhead --quick      one small job of each, to see that it works

Every job takes the way of a real one: parsing, a reference image over HTTP, the pipe to ffmpeg, upload to an S3 server,
webhooks; all over loopback, to doubles that check what they are given. The seconds beside the model are reported in two
parts: what the encoder adds to the decoding that it runs beside, and all the rest. Prints a table of medians and writes
`benchmarks/results/overhead-DATE.json`; ends with 1 where the rest grows with the frames.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import logging
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from pytest_httpserver import HTTPServer

from benchmarks import reporting
from benchmarks.reporting import RESULTS
from tests.kits.s3_double import serving
from tests.kits.webhook_receiver import Receiver, works
from worker.base.settings import Settings
from worker.jobs import flow

# Upload and webhook may differ by this much between a short and a long video: its file is larger.
GROWTH_S = 0.1
TARGET_S = 0.3


@dataclass(frozen=True)
class Case:
    width: int
    height: int
    frames: tuple[int, ...]
    repeats: int


FULL = Case(832, 480, (33, 81), 3)
QUICK = Case(256, 256, (5, 9), 1)


@dataclass(frozen=True)
class Run:
    """Seconds of one job. `model`: load, text, steps and decoding; `encoder`: what encoding adds to decoding."""

    frames: int
    wall: float
    model: float
    decode: float
    encoder: float
    rest: float
    upload: float
    size_bytes: int


class Timed:
    """The engine, with the seconds counted that its frames take to be decoded."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.decode_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(self, *arguments: Any, **options: Any) -> Any:
        rendering = self._engine.generate(*arguments, **options)
        return replace(rendering, frames=lambda: self._counted(rendering.frames()))

    def _counted(self, frames: Generator[Any]) -> Generator[Any]:
        while True:
            began = time.perf_counter()
            frame = next(frames, None)
            self.decode_s += time.perf_counter() - began
            if frame is None:
                return
            yield frame


def measure(case: Case, home: Path) -> list[Run]:
    from worker.start import build_worker

    with serving() as s3, Receiver(works) as receiver, HTTPServer(host="127.0.0.1") as pictures:
        stream = io.BytesIO()
        Image.effect_noise((case.width, case.height), 60).convert("RGB").save(stream, "PNG")
        pictures.expect_request("/person.png").respond_with_data(stream.getvalue(), content_type="image/png")
        settings = Settings(
            model_profile="demo",
            preload=("i2v",),
            state_dir=home,
            storage_endpoint_url=s3.endpoint_url,
            storage_access_key="key",
            storage_secret_key="secret",
            storage_bucket="videos-bucket",
            private_url_allowlist=("127.0.0.1", "localhost"),
        )
        worker = build_worker(settings)
        engine = Timed(worker.engine)
        worker = replace(worker, engine=engine)  # type: ignore[arg-type]
        try:
            runs = []
            for repeat in range(case.repeats + 1):
                for frames in case.frames:
                    print(f"job {repeat} of {case.repeats}: {frames} frames", file=sys.stderr)
                    payload = _payload(case, frames, repeat, receiver.url, pictures.url_for("/person.png"))
                    engine.decode_s = 0.0
                    began = time.perf_counter()
                    answer = asyncio.run(flow.run({"id": payload["job_id"], "input": payload}, worker, lambda _: None))
                    wall = time.perf_counter() - began
                    if repeat > 0:  # the first loads and warms
                        runs.append(_run(answer, frames, wall, engine.decode_s))
            return runs
        finally:
            worker.gpu.shutdown()


def _payload(case: Case, frames: int, repeat: int, webhook_url: str, picture_url: str) -> dict[str, Any]:
    return {
        "job_id": f"overhead-{frames}-{repeat}",
        "webhook_url": webhook_url,
        "job_request_params": [
            {
                "prompt": "a cat on a sofa",
                "reference_image_url": picture_url,
                "width": case.width,
                "height": case.height,
                "num_frames": frames,
                "num_inference_steps": 2,
                "seed": repeat,
            }
        ],
    }


def _run(answer: dict[str, Any], frames: int, wall: float, decode_s: float) -> Run:
    if answer["status"] != "completed":
        raise RuntimeError(json.dumps(answer))
    video = answer["videos"][0]
    seconds = video["timings"]
    model = seconds.get("load", 0.0) + seconds["text"] + seconds["generate"] + decode_s
    encoder = seconds["encode"] - decode_s
    return Run(frames, wall, model, decode_s, encoder, wall - model - encoder, seconds["upload"], video["size_bytes"])


def _table(case: Case, medians: list[Run]) -> str:
    heads = ("frames", "whole job", "model", "of it decoding", "the encoder adds", "all the rest", "of it upload", "MB")
    rows = [
        (
            *(str(run.frames), f"{run.wall:.2f}", f"{run.model:.2f}", f"{run.decode:.2f}", f"{run.encoder:.2f}"),
            *(f"{run.rest:.3f}", f"{run.upload:.3f}", f"{run.size_bytes / 1e6:.1f}"),
        )
        for run in medians
    ]
    title = f"{case.width}x{case.height}, medians of {case.repeats}, seconds"
    return f"{title}\n\n{reporting.table(heads, rows, words=0)}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what a job takes beside the model.")
    parser.add_argument("--quick", action="store_true", help="one small job of each; a file only with --output")
    parser.add_argument("--output", type=Path, help=f"folder of the result (default {RESULTS.name}; none with --quick)")
    options = parser.parse_args()
    case = QUICK if options.quick else FULL
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as home:
        runs = measure(case, Path(home))
    medians = reporting.medians(runs, "frames")
    beside = medians[0].encoder + medians[0].rest
    growth = medians[-1].rest - medians[0].rest
    print(_table(case, medians))
    print(f"\nbeside the model at {medians[0].frames} frames: {beside:.3f} s (target {TARGET_S} s)")
    print(f"growth of the rest from {medians[0].frames} to {medians[-1].frames} frames: {growth:+.3f} s")
    folder = options.output if options.output is not None else (None if options.quick else RESULTS)
    result = {
        "case": asdict(case),
        "beside_the_model_s": beside,
        "growth_s": growth,
        "medians": reporting.as_dicts(medians),
        "runs": reporting.as_dicts(runs),
    }
    reporting.write(folder, "overhead", result)
    return 0 if growth <= GROWTH_S or options.quick else 1


if __name__ == "__main__":
    sys.exit(main())
