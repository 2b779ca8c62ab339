"""The jobs of `benchmarks.long`, each in a process of its own: python -m benchmarks.long_jobs PAYLOADS JOB_ID GAIN."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from worker.engine import Rendering, Video
from worker.media.color_match import from_linear, to_linear
from worker.weights.sources.demo_trained import WEIGHTS


@dataclass(frozen=True, slots=True)
class Model:
    """What makes the videos, by its MODEL_PROFILE. new_frames: by how many each segment goes on."""

    profile: str
    width: int
    height: int
    new_frames: int

    def environment(self, folder: Path) -> dict[str, str]:
        """Of a worker whose files are in `folder`; the demo gets nothing of the operator's, not even weights."""
        places = {"MODEL_PROFILE": self.profile, "STATE_DIR": str(folder / "state"), "OUTPUT_DIR": str(folder / "out")}
        if self.profile != "demo":
            return {**os.environ, **places}
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "OMP_NUM_THREADS")}
        return {**kept, **places, "MODEL_CACHE_DIR": str(folder / "models")}


# In four segments of twelve new frames the demo's object stays within the frame; the other is a usual clip of Wan's.
MODELS = {"demo": Model("demo", 256, 256, 12), "wan2.2": Model("wan2.2", 832, 480, 80)}


def started(
    payloads: list[dict[str, Any]], folder: Path, job_id: str, *, model: Model = MODELS["demo"], gain: float = 1.0
) -> subprocess.Popen[str]:
    loras = folder / "models" / "loras"  # what an operator puts there; of the demo alone
    loras.mkdir(parents=True, exist_ok=True)
    for file in (WEIGHTS / "loras").glob("svi-*.safetensors"):
        shutil.copy(file, loras)
    asked = folder / f"{job_id}.json"  # pictures are too long for a command line
    asked.write_text(json.dumps(payloads))
    command = [sys.executable, "-m", "benchmarks.long_jobs", str(asked), job_id, str(gain)]
    return subprocess.Popen(
        command, env=model.environment(folder), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def answered(
    payloads: list[dict[str, Any]], folder: Path, job_id: str, *, model: Model = MODELS["demo"], gain: float = 1.0
) -> dict[str, Any]:
    lines = started(payloads, folder, job_id, model=model, gain=gain).communicate()[0].splitlines()
    if not lines:
        raise RuntimeError("the worker of the job did not start: run `python -m worker.cli doctor` to see why")
    answer: dict[str, Any] = json.loads(lines[-1])
    if answer["status"] != "completed":
        raise RuntimeError(f"the job {answer['status']}: {answer.get('error')}")
    return answer


def _job(payloads: list[dict[str, Any]], job_id: str, gain: float) -> dict[str, Any]:
    """The answer to a job in this process, and the most memory that it took.

    gain: by how much every segment that begins with a picture is made lighter, in linear light.
    """
    from worker import start
    from worker.base import settings
    from worker.jobs import flow

    settings.quiet_imports()
    worker = start.build_worker(settings.load())
    if gain != 1:
        worker.engine.generate = _lighter(worker.engine.generate, gain)  # type: ignore[method-assign]
    event = {"id": job_id, "input": {"job_request_params": payloads}}
    answer = asyncio.run(flow.run(event, worker, lambda _: None))
    return {**answer, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def _lighter(generate: Callable[..., Rendering], gain: float) -> Callable[..., Rendering]:
    levels = np.rint(from_linear(gain * to_linear(np.arange(256) / 255)) * 255).astype(np.uint8)

    def drawn(video: Video, **others: Any) -> Rendering:
        rendering = generate(video, **others)

        def frames() -> Generator[np.ndarray]:
            with closing(rendering.frames()) as own:
                yield from (levels[frame] for frame in own)

        return rendering if video.conditioning.image is None else replace(rendering, frames=frames)

    return drawn


if __name__ == "__main__":
    print(json.dumps(_job(json.loads(Path(sys.argv[1]).read_text()), sys.argv[2], float(sys.argv[3]))))
