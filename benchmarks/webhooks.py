"""Final events to a receiver that is dead for the whole of every job, and comes back: is any lost, has any two ids?

    python -m benchmarks.webhooks --events 500

Jobs of 16 videos tell a receiver that refuses every connection; then it comes back on the same port and the outbox is
emptied as the next worker does. Then the same number to a receiver that fails four times for each event and takes the
fifth attempt. The waits between attempts are shortened; the code is the worker's. Then a receiver that works beside
hundreds that say nothing, with the worker's own waits. Exits 1 where an event was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
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
from worker.delivery.webhooks.letter import Letter
from worker.delivery.webhooks.outbox import Outbox
from worker.delivery.webhooks.postman import Patience, redeliver
from worker.net import Opener

VIDEOS_A_JOB = 16
OPENER = Opener(("127.0.0.0/8",))
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


async def silent_neighbours(silent: int, healthy_events: int, folder: Path) -> dict[str, Any]:
    """One event for each of `silent` receivers, which accept and say nothing, beside those of one that works.

    A job a minute empties the outbox, as on a worker. Seconds until the healthy receiver has all of its events.
    """
    state, ids = StateFolder(folder), [f"evt_{number}" for number in range(healthy_events)]
    with socket.create_server(("", 0), backlog=4096) as deaf, Receiver(works) as receiver:
        outbox = Outbox(state)
        for number in range(silent):
            host = f"127.0.{1 + number // 250}.{1 + number % 250}"
            _put(outbox, f"silent-{number}", f"http://{host}:{deaf.getsockname()[1]}/hook")
        for number, event_id in enumerate(ids):
            _put(outbox, event_id, receiver.url, job_id=f"healthy-{number}")
        began, rounds = time.monotonic(), 0
        while not set(ids) <= set(receiver.ids) and rounds < 10:
            await asyncio.sleep(max(0.0, began + 60.0 * rounds - time.monotonic()))
            await redeliver(Outbox(state), opener=OPENER, secrets=(), journal=Journal(state))
            rounds += 1
        last = max((each.at for each in receiver.received), default=float("inf"))
        lost = len(set(ids) - set(receiver.ids))
    return {
        "silent_receivers": silent,
        "events": healthy_events,
        "lost": lost,
        "unknown_ids": 0,
        "rounds": rounds,
        "last_arrived_s": round(last - began, 1),
    }


def _put(outbox: Outbox, event_id: str, url: str, job_id: str | None = None) -> None:
    body = json.dumps({"event_id": event_id})
    outbox.put(Letter(job_id=job_id or event_id, event_id=event_id, url=url, body=body, created_at=time.time()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=500)
    parser.add_argument("--silent", type=int, default=400, help="receivers that accept and say nothing")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        found = {
            "dead_then_back": asyncio.run(dead_then_back(options.events, Path(home) / "dead")),
            "fails_four_times": asyncio.run(fails_four_times(options.events, Path(home) / "slow")),
            "silent_neighbours": asyncio.run(silent_neighbours(options.silent, 20, Path(home) / "silent")),
        }
    result = {**found, "seconds": round(time.monotonic() - began, 1)}
    print(json.dumps(result, indent=2))
    reporting.write(options.output, "webhooks", result)
    return 1 if any(part["lost"] or part["unknown_ids"] for part in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
