"""A crew of two whose follower is killed in the midst of a job; prints the job's answer as JSON.

A process of its own: a crew is made once in the life of a worker, and torch keeps traces of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal

import psutil

from worker import start
from worker.base import settings
from worker.jobs import flow, report


def kill_the_followers() -> None:
    for child in psutil.Process().children():
        if "spawn_main" in " ".join(child.cmdline()):
            os.kill(child.pid, signal.SIGKILL)
            child.wait(10)


def _kill_at_a_step(_watcher: object, fraction: float) -> None:
    if fraction > 0:
        kill_the_followers()


def main() -> None:
    worker = start.build_worker(settings.load())
    report.VideoReport.generating = _kill_at_a_step  # type: ignore[method-assign]
    payload = {"prompt": "a cat", "height": 256, "width": 256, "num_frames": 5, "num_inference_steps": 4}
    answers = [asyncio.run(flow.run({"id": f"crew-{n}", "input": payload}, worker, lambda _: None)) for n in (1, 2)]
    print(json.dumps(answers), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
