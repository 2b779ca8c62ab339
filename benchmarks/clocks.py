"""Workers whose clock is days off, on a state folder that holds what could not be delivered: is anything lost?

    python -m benchmarks.clocks

A worker with the right clock makes a video that neither the storage nor the webhook receiver accepts: the video waits
in the spool, the event in the outbox, the job in the journal. Then a worker whose clock is off starts on the same
folder, tidies up beside a job that it refuses, and is given the job again once storage and receiver work. Everything
must be there until then, and the job be delivered as it was made: one object, one event, nothing made again. Workers
are the real handler.py on the demo model, in processes of their own. Writes `benchmarks/results/clocks-DATE.json`; ends
with 1 otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import reporting
from benchmarks.reporting import RESULTS
from tests.kits import no_orphans
from tests.kits.platform_double import Platform, WorkerProcess
from tests.kits.s3_double import Handler, serving
from tests.kits.webhook_receiver import Handler as Hook
from tests.kits.webhook_receiver import Received, Receiver

DAY_S = 86_400.0
AHEAD_S = (-400 * DAY_S, -8 * DAY_S, -3600.0, 3600.0, 8 * DAY_S, 400 * DAY_S)
_FOLDERS = ("journal", "outbox", "spool")


@dataclass(frozen=True, slots=True)
class Outcome:
    """`kept`: the files of journal, outbox and spool that the worker whose clock is off left, of those `there`."""

    ahead_s: float
    there: int
    kept: int
    delivered: bool
    made_again: int
    event_ids: int

    @property
    def good(self) -> bool:
        return self.there == self.kept and self.delivered and not self.made_again and self.event_ids == 1


def measure(ahead_s: float, home: Path) -> Outcome:
    works: list[bool] = []

    def store(handler: Handler) -> bool:
        if not works:
            handler.error(403, "AccessDenied")
        return not works

    def take(hook: Hook, _received: Received, _number: int) -> None:
        hook.answer(200 if works else 503)

    with ExitStack() as stack:
        platform = stack.enter_context(Platform())
        double = stack.enter_context(serving())
        receiver = stack.enter_context(Receiver(take))
        double.always = dict.fromkeys(("put", "head"), store)
        environment = {
            **double.environment(),
            "PRELOAD": "t2v",
        }
        video = {"prompt": "a cat", "height": 256, "width": 256, "num_frames": 5, "num_inference_steps": 1}
        payload = {"job_id": "one", "webhook_url": receiver.url, "job_request_params": [video]}
        with WorkerProcess(platform, home, environment) as worker:
            platform.wait_result(platform.submit(payload), 300)
        before = _files(home)
        with WorkerProcess(platform, home, environment, clock_ahead_s=ahead_s) as worker:
            platform.wait_result(platform.submit({"prompt": ""}), 300)
            kept = before & _files(home)
            works.append(True)
            answer = platform.wait_result(platform.submit(payload), 300)["output"]
            arrived = [each.event for each in receiver.received if each.event["type"] == "completed"]
            bodies = [each.body for path, each in double.objects.items() if path.endswith(".mp4")]
            return Outcome(
                ahead_s=ahead_s,
                there=len(before),
                kept=len(kept),
                delivered=_is_delivered(answer, bodies),
                made_again=worker.log.count("text_to_video, prompt"),
                event_ids=len({event["event_id"] for event in arrived}),
            )


def _files(home: Path) -> set[str]:
    """The names of what waits and of what is recorded."""
    return {
        f"{folder}/{path.name}"
        for folder in _FOLDERS
        for path in (home / "state" / folder).glob("[!.]*")
        if path.suffix != ".lock"
    }


def _is_delivered(answer: Mapping[str, Any], bodies: list[bytes]) -> bool:
    told = [video.get("sha256") for video in answer["videos"]]
    return answer["status"] == "completed" and told == [hashlib.sha256(body).hexdigest() for body in bodies]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    no_orphans.end_children_at_sigterm()
    outcomes = []
    for ahead_s in AHEAD_S:
        with tempfile.TemporaryDirectory() as home:
            outcomes.append(measure(ahead_s, Path(home)))
        print(json.dumps(asdict(outcomes[-1])))
    good = all(outcome.good for outcome in outcomes)
    reporting.write(options.output, "clocks", {"good": good, "runs": reporting.as_dicts(outcomes)})
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
