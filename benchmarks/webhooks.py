"""Final events to a receiver that is dead for the whole of every job, and comes back: is any lost, has any two ids?

    python -m benchmarks.webhooks --events 500

Jobs of 16 videos tell a receiver that refuses every connection; then it comes back on the same port and the outbox is
emptied as the next worker does. Then the same number to a receiver that fails four times for each event and takes the
fifth attempt. The waits between attempts are shortened; the code is the worker's. Exits 1 where an event was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks import reporting
from benchmarks.reporting import RESULTS
from tests.kits.webhook_receiver import Handler, Received, Receiver, works
from worker.base.files import StateFolder
from worker.delivery.journal import Journal
from worker.delivery.webhooks.channel import Channel
from worker.delivery.webhooks.envelopes import final_event_id
from worker.delivery.webhooks.outbox import Outbox
from worker.delivery.webhooks.postman import Patience, redeliver
from worker.net import Opener

VIDEOS_A_JOB = 16
OPENER = Opener(("127.0.0.1",))
QUICK = Patience(waits_s=(0.01,) * 4, attempt_s=5.0, event_s=10.0, job_s=1e6, least_s=0.0)


async def tell(url: str, state: StateFolder, events: int, name: str) -> list[str]:
    """Tell `events` completed videos, job by job; answers the event ids."""
    ids = []
    for first in range(0, events, VIDEOS_A_JOB):
        job_id, count = f"{name}-{first}", min(VIDEOS_A_JOB, events - first)
        channel = Channel(
            url=url,
            events=frozenset({"completed"}),
            job_id=job_id,
            total=count,
            payload_digest="0" * 64,
            opener=OPENER,
            secrets=(),
            outbox=Outbox(state),
            journal=Journal(state),
            patience=QUICK,
        )
        for index in range(count):
            await channel.completed(index, {"index": index})
            ids.append(final_event_id(job_id, "0" * 64, index, "completed"))
        await channel.close()
    return ids


async def dead_then_back(events: int, folder: Path) -> dict[str, Any]:
    with Receiver(works) as receiver:
        url = receiver.url
    state = StateFolder(folder)
    ids = await tell(url, state, events, "dead")
    waiting = len(list(state.folder("outbox").glob("*.json")))
    with Receiver(works, port=receiver.port) as back:
        for _ in range(50):
            await redeliver(Outbox(state), opener=OPENER, secrets=(), journal=Journal(state), budget_s=30.0)
            if not list(state.folder("outbox").glob("*.json")):
                break
        arrived = set(back.ids)
    return {
        "events": events,
        "waiting_when_dead": waiting,
        "lost": len(set(ids) - arrived),
        "unknown_ids": len(arrived - set(ids)),
    }


async def fails_four_times(events: int, folder: Path) -> dict[str, Any]:
    attempts: Counter[str] = Counter()

    def behaviour(handler: Handler, received: Received, _number: int) -> None:
        event_id = received.event["event_id"]
        attempts[event_id] += 1
        handler.answer(503 if attempts[event_id] < 5 else 200)

    with Receiver(behaviour) as receiver:
        ids = await tell(receiver.url, StateFolder(folder), events, "slow")
    taken = {event_id for event_id, count in attempts.items() if count >= 5}
    return {
        "events": events,
        "lost": len(set(ids) - taken),
        "unknown_ids": len(set(attempts) - set(ids)),
        "attempts": attempts.total(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=500)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        found = {
            "dead_then_back": asyncio.run(dead_then_back(options.events, Path(home) / "dead")),
            "fails_four_times": asyncio.run(fails_four_times(options.events, Path(home) / "slow")),
        }
    result = {**found, "seconds": round(time.monotonic() - began, 1)}
    print(json.dumps(result, indent=2))
    reporting.write(options.output, "webhooks", result)
    return 1 if any(part["lost"] or part["unknown_ids"] for part in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
