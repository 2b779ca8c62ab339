"""One worker under mixed demo jobs and random faults: does memory stay flat, is every job accounted for?

    python -m benchmarks.soak --minutes 60

Jobs of every mode, bad payloads, redeliveries and stops at random moments, while the storage answers 503 or resets, the
webhook receiver fails, and images are missing. At the end the faults stop and what waits is delivered. Then: every
answer was of the contract's shape, every delivered video is in the storage with its hash, every final event arrived
under one id, resident memory and open files did not grow. Exits 1 where one of these is not so. All on loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import io
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
from PIL import Image
from tqdm import tqdm

from benchmarks import reporting
from benchmarks.reporting import RESULTS
from tests.kits import s3_double
from worker import start
from worker.base import folders, settings
from worker.base.files import StateFolder
from worker.delivery.webhooks import outbox
from worker.jobs import flow, tidy
from worker.jobs.services import Services

WARM_UP = 0.3  # the share of the run in which caches and pools fill
MAX_GROWTH = 0.10
MAX_MORE_FILES = 8
REDELIVERED = 25  # a redelivery is of one of so many jobs before it


@dataclass
class World:
    """What is around the worker, and how badly it behaves just now (0 to 1)."""

    chance: random.Random
    trouble: float = 0.15
    told: dict[tuple[str, int | None, str], set[str]] = field(default_factory=dict)
    attempts: int = 0

    def fails(self) -> bool:
        return self.chance.random() < self.trouble


class _Around(BaseHTTPRequestHandler):
    """Images for GET, the webhook receiver for POST."""

    server: Any

    def log_message(self, *_: object) -> None: ...

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.server.world.fails():
            self._answer(404)
        else:
            self._answer(200, self.server.picture)

    def do_POST(self) -> None:
        world: World = self.server.world
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        world.attempts += 1
        if world.fails():
            self._answer(world.chance.choice((500, 503, 429)))
            return
        if event["type"] != "progress":
            key = (event["data"]["job_id"], event["index"], event["type"])
            world.told.setdefault(key, set()).add(event["event_id"])
        self._answer(200)


@contextlib.contextmanager
def around(world: World) -> Iterator[str]:
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((320, 240)).convert("RGB").save(stream, "PNG")
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Around)
    server.world, server.picture = world, stream.getvalue()
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def a_fault(world: World) -> s3_double.Fault:
    def fault(request: s3_double.Handler) -> bool:
        if not world.fails():
            return False
        if world.chance.random() < 0.5:
            request.error(503, "SlowDown")
        else:
            request.cut()
        return True

    return fault


def a_payload(number: int, base: str, chance: random.Random) -> dict[str, Any]:
    tiny = {"height": 256, "width": 256, "num_frames": 5, "num_inference_steps": 1, "prompt": f"clip {number}"}
    kinds: list[list[dict[str, Any]]] = [
        [tiny],
        [{**tiny, "reference_image_url": f"{base}/a.png"}],
        [{**tiny, "reference_image_url": f"{base}/a.png", "last_image_url": f"{base}/b.png"}],
        [{**tiny, "model": "5b"}],
        [tiny, {**tiny, "num_frames": 9, "quality_preset": "turbo"}, {**tiny, "reference_image_url": f"{base}/c.png"}],
        [{**tiny, "num_frames": 4000, "prompt": ""}],
        [{**tiny, "reference_image_url": "http://10.0.0.1/a.png"}],
    ]
    return {"job_id": f"soak-{number}", "webhook_url": f"{base}/hook", "job_request_params": chance.choice(kinds)}


async def one_job(worker: Services, payload: dict[str, Any], *, stop_after_s: float | None) -> dict[str, Any]:
    task = asyncio.create_task(flow.run({"id": "rp", "input": payload}, worker, lambda _: None))
    if stop_after_s is not None:
        await asyncio.sleep(stop_after_s)
        task.cancel()
    return await task


def check_answer(answer: dict[str, Any]) -> None:
    json.dumps(answer, allow_nan=False)
    delivered = [video for video in answer["videos"] if video["status"] == "completed"]
    expected = "failed" if not delivered else "completed" if len(delivered) == len(answer["videos"]) else "partial"
    assert answer["status"] == expected, answer
    assert ("error" in answer) == (not delivered), answer
    if not delivered:
        assert isinstance(json.loads(answer["error"])["code"], str)


async def soak(minutes: float, seed: int, bar: tqdm[Any]) -> dict[str, Any]:
    chance = random.Random(seed)
    world = World(random.Random(seed + 1))
    process = psutil.Process()
    samples: list[tuple[float, int]] = []
    outcomes: Counter[str] = Counter()
    finals: list[tuple[str, int | None, str]] = []
    payloads: list[dict[str, Any]] = []
    videos = wrong = 0
    with around(world) as base, s3_double.serving() as storage:
        for operation in ("put", "head"):
            storage.always[operation] = a_fault(world)
        os.environ["DIGITAL_OCEAN_ENDPOINT_URL"] = storage.endpoint_url
        worker = start.build_worker(settings.load())
        ends = time.monotonic() + minutes * 60
        while (left := ends - time.monotonic()) > 0:
            again = bool(payloads) and chance.random() < 0.2
            payload = chance.choice(payloads[-REDELIVERED:]) if again else a_payload(len(payloads), base, chance)
            if not again:
                payloads.append(payload)
            stop_after_s = chance.uniform(0.0, 1.0) if chance.random() < 0.1 else None
            answer = await one_job(worker, payload, stop_after_s=stop_after_s)
            check_answer(answer)
            outcomes[answer["status"]] += 1
            for video in answer["videos"]:
                finals.append((answer["job_id"], video["index"], video["status"]))
                if video["status"] == "completed":
                    videos += 1
                    wrong += digest(storage, video["video_url"]) != video["sha256"]
            if not answer["videos"]:
                finals.append((answer["job_id"], None, "failed"))
            forget(storage, payloads[: -2 * REDELIVERED])
            samples.append((process.memory_info().rss / 2**20, process.num_fds()))
            bar.update(minutes * 60 - left - bar.n)
        world.trouble = 0.0
        await drained(worker, world, finals)
        lost = [final for final in finals if final not in world.told]
        twice = [final for final, ids in world.told.items() if len(ids) > 1]
    return {
        "jobs": sum(outcomes.values()),
        "outcomes": dict(outcomes),
        "final_events": len(set(finals)),
        "lost_events": len(lost),
        "events_under_two_ids": len(twice),
        "webhook_attempts": world.attempts,
        "videos": videos,
        "wrong_objects": wrong,
        **growth(samples),
    }


async def drained(worker: Services, world: World, finals: list[tuple[str, int | None, str]]) -> None:
    """Deliver what waits in the outbox, as the next worker would."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and any(final not in world.told for final in finals):
        fresh = outbox.Outbox(StateFolder(folders.state_dir(worker.settings)))  # as the next worker begins
        await tidy.tidy(replace(worker, outbox=fresh))
        await asyncio.sleep(0.2)


def digest(storage: s3_double.Double, url: str) -> str | None:
    found = [stored for key, stored in storage.objects.items() if url.endswith(key.removeprefix("/"))]
    return hashlib.sha256(found[0].body).hexdigest() if found else None


def forget(storage: s3_double.Double, old: list[dict[str, Any]]) -> None:
    """The double lives in the same process: what it holds of jobs that will not come again is not the worker's."""
    storage.seen.clear()
    for payload in old[-2:]:
        for key in [key for key in storage.objects if f"/{payload['job_id']}/" in key]:
            del storage.objects[key]


def growth(samples: list[tuple[float, int]]) -> dict[str, Any]:
    """Resident MiB and open files: the median of the first third after the warm-up against that of the last third."""
    steady = samples[int(len(samples) * WARM_UP) :]
    third = max(1, len(steady) // 3)
    first, last = steady[:third], steady[-third:]
    rss = [statistics.median(rss for rss, _ in part) for part in (first, last)]
    fds = [statistics.median(fds for _, fds in part) for part in (first, last)]
    return {
        "rss_mib": [round(value, 1) for value in rss],
        "open_files": fds,
        "rss_growth": round(rss[1] / rss[0] - 1, 4),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--max-growth", type=float, default=MAX_GROWTH, help="of resident memory, as a share")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {
            "MODEL_PROFILE": "demo",
            "STATE_DIR": f"{home}/state",
            "PRIVATE_URL_ALLOWLIST": "127.0.0.1",
            "LOG_LEVEL": "ERROR",
            "DIGITAL_OCEAN_BUCKET_NAME": "soak",
            "DIGITAL_OCEAN_BUCKET_ACCESS_KEY": "key",
            "DIGITAL_OCEAN_BUCKET_SECRET_KEY": "secret",
        }
        with tqdm(total=options.minutes * 60, unit="s", disable=None) as bar:
            found = asyncio.run(soak(options.minutes, options.seed, bar))
    result = {"minutes": options.minutes, "seed": options.seed, **found}
    print(json.dumps(result, indent=2))
    reporting.write(options.output, "soak", result)
    problems = [
        name
        for name, bad in (
            ("events were lost", found["lost_events"]),
            ("events came under two ids", found["events_under_two_ids"]),
            ("objects are missing or wrong", found["wrong_objects"]),
            ("memory grew", found["rss_growth"] > options.max_growth),
            ("files stayed open", found["open_files"][1] - found["open_files"][0] > MAX_MORE_FILES),
        )
        if bad
    ]
    print("; ".join(problems) if problems else "flat, and every job accounted for")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
