"""A worker that must end while it sends an event of an earlier job: the event waits for the next worker."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path

import pytest

from tests.flow.conftest import Runner, small
from tests.kits.platform_double import Platform, WorkerProcess
from tests.kits.seeing import scrape, value
from tests.kits.webhook_receiver import Receiver as LateReceiver
from tests.kits.webhook_receiver import works
from worker.base.metrics import Server
from worker.delivery.webhooks.letter import Letter
from worker.jobs import tidy


def test_an_event_that_waits_does_not_hold_up_a_worker_that_must_end(run: Runner, server: Server) -> None:
    """The attempt, which may take 15 s, ends with the signal, and the event waits for the next worker."""

    async def idle(receiver: LateReceiver) -> None:
        url = receiver.url
        run.worker.outbox.put(Letter(job_id="earlier", event_id="e", url=url, body="{}", created_at=time.time()))
        thread = threading.Thread(target=asyncio.run, args=(tidy.tidy_alone(run.worker),))
        thread.start()
        while not receiver.received:
            await asyncio.sleep(0.01)
        run.worker.shutdown.begin()
        await asyncio.to_thread(thread.join)

    with LateReceiver(lambda handler, *_: handler.hang()) as receiver:
        asyncio.run(idle(receiver))
        for thread in threading.enumerate():
            if thread.name.startswith("webhook-outbox"):
                thread.join()
    sample = scrape(server.port)
    assert value(sample, "videogen_webhook_attempts_total", event="final", result="stopped") == 1
    assert value(sample, "videogen_webhook_attempts_total", event="final", result="failed") is None
    assert run.worker.outbox.count() == 1


@pytest.mark.slow  # test_an_event_that_waits_does_not_hold_up_a_worker_that_must_end, in a process
def test_a_dead_receiver_does_not_hold_up_a_worker_that_must_end(platform: Platform, tmp_path: Path) -> None:
    """An event has 35 s, an attempt 15 s: both end with the grace, and the event waits for the next worker."""
    with LateReceiver(lambda handler, *_: handler.hang()) as receiver:
        with WorkerProcess(platform, tmp_path, {"SHUTDOWN_GRACE_S": "0.5"}) as worker:
            payload = {"webhook_url": receiver.url, "webhook_events": ["completed"], **small()}
            job_id = platform.submit(payload)
            worker.wait_until(lambda: len(receiver.received) == 1)
            worker.terminate()
            assert worker.wait(12.0) == 0  # less than one attempt
        assert platform.results[job_id][0]["output"]["status"] == "completed"
        (waiting,) = (tmp_path / "state" / "outbox").glob("*.json")
        assert json.loads(waiting.read_text())["job_id"] == job_id
        receiver.behaviour = works
        with WorkerProcess(platform, tmp_path) as worker:
            worker.wait_until(lambda: not waiting.exists())
    assert [json.loads(received.body)["type"] for received in receiver.received] == ["completed", "completed"]
