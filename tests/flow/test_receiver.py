"""examples/receiver.py behind a real socket, with the worker's own webhook code delivering to it."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from tests.kits.slow import slow
from worker.base.files import StateFolder
from worker.delivery.webhooks import envelopes
from worker.delivery.webhooks.channel import Channel
from worker.delivery.webhooks.outbox import Outbox
from worker.delivery.webhooks.postman import Patience, redeliver
from worker.delivery.webhooks.progress_sender import ProgressEvent
from worker.net import Opener

ROOT = Path(__file__).resolve().parents[2]
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET = "whsec_plJ3nmyCDGBKInavdOK15jsl01234567"
OPENER = Opener(("127.0.0.1",))
QUICK = Patience(waits_s=(0.01,), attempt_s=10.0, event_s=20.0, job_s=40.0, least_s=0.0, progress_every_s=0.0)
VIDEO = {"job_id": "abc", "video_url": "https://cdn.example.com/abc/0.mp4"}
FAILURE = {"job_id": "abc", "error": {"code": "input_failed"}}


def start(home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'examples')!r}); import receiver"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=home,
        env={"PATH": "", "TMPDIR": str(home / "tmp"), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("secret", [{"WEBHOOK_SECRET": "hunter2"}, *slow({}, {"WEBHOOK_SECRET": ""})], ids=str)
def test_without_a_secret_it_says_so(tmp_path: Path, secret: dict[str, str]) -> None:
    done = start(tmp_path, **secret)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: set WEBHOOK_SECRET to the worker's own")
    assert done.stderr.count("\n") == 1


def test_events_are_kept_in_the_temporary_folder_where_no_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    assert start(tmp_path, WEBHOOK_SECRET=SECRET).returncode == 0
    assert [path.name for path in tmp_path.rglob("*.sqlite3")] == ["videogen-inbox.sqlite3"]
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]


class Receiver:
    """The example under uvicorn, in a process of its own; killed on the way out."""

    def __init__(self, home: Path) -> None:
        self.inbox = home / "inbox.sqlite3"
        self._log = home / "receiver.log"

    def __enter__(self) -> Receiver:
        command = [sys.executable, "-m", "uvicorn", "--app-dir", str(ROOT / "examples"), "receiver:app", "--port", "0"]
        variables = {"WEBHOOK_SECRET": SECRET, "INBOX": str(self.inbox)}
        self._log.write_bytes(b"")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, env={**os.environ, **variables}, stdout=log, stderr=log)
        (port,) = self.lines(r"running on http://127\.0\.0\.1:(\d+)")
        self.url = f"http://127.0.0.1:{port}/webhook"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def lines(self, pattern: str, *, at_least: int = 1, within_s: float = 200.0) -> list[str]:
        """What `pattern` finds in the log, once there is enough of it."""
        deadline = time.monotonic() + within_s
        while len(found := re.findall(pattern, self._log.read_text())) < at_least:
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.02)
        return found

    def forget(self) -> None:
        os.truncate(self._log, 0)
        with sqlite3.connect(self.inbox) as table:
            table.execute("DELETE FROM events")
        table.close()

    def kept(self) -> list[tuple[str, int]]:
        with sqlite3.connect(self.inbox) as table:
            rows = table.execute("SELECT event_id, handled FROM events ORDER BY rowid").fetchall()
        table.close()
        return rows


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    with Receiver(tmp_path_factory.mktemp("receiver")) as started:
        yield started


@pytest.fixture
def receiver(running: Receiver) -> Receiver:
    """Shared by the tests that do not end it; knows nothing of the events of the one before."""
    running.forget()
    return running


def channel(url: str, secret: str = SECRET, outbox: Outbox | None = None) -> Channel:
    events = frozenset({"progress", "completed", "failed"})
    return Channel(
        url=url,
        events=events,
        job_id="abc",
        total=2,
        payload_digest="d1",
        opener=OPENER,
        secrets=(secret,),
        outbox=outbox,
        patience=QUICK,
    )


def post(url: str, body: str, headers: dict[str, str]) -> int:
    return OPENER.post(url, body.encode(), headers, timeout_s=10.0).status


def signed(event: dict[str, Any], at: datetime) -> tuple[str, dict[str, str]]:
    body = envelopes.serialised(event)
    return body, envelopes.headers(body, event_id=event["event_id"], now=at, secrets=(SECRET,))


def completed_event() -> dict[str, Any]:
    return envelopes.completed(VIDEO, event_id="evt_1", timestamp=datetime.now(UTC), index=0, total=1)


async def test_progress_and_final_events_arrive_and_are_handled(receiver: Receiver) -> None:
    telling = channel(receiver.url)
    telling.progress(ProgressEvent(progress=42, status="generating", index=0))
    assert receiver.lines("abc: 42% generating")
    assert await telling.completed(0, VIDEO)
    assert await telling.failed(1, FAILURE, 422, "reference_image_url: the server answered with HTTP status 404")
    await telling.close()
    assert receiver.lines(r"abc video (\d) completed: https://cdn\.example\.com/abc/0\.mp4") == ["0"]
    assert receiver.lines(r"abc video (\d) failed: input_failed") == ["1"]
    assert [event_id[:4] for event_id, _ in receiver.kept()] == ["evt_", "evt_"]  # progress is not kept


async def test_an_event_that_comes_twice_is_answered_twice_and_handled_once(receiver: Receiver) -> None:
    for _ in range(2):
        telling = channel(receiver.url)
        assert await telling.completed(0, VIDEO)
        await telling.close()
    receiver.lines('"POST /webhook HTTP/1.1" 200', at_least=2)
    telling = channel(receiver.url)
    assert await telling.failed(1, FAILURE, 422, "no")  # handled after both
    await telling.close()
    receiver.lines("video 1 failed")
    assert len(receiver.lines("video 0 completed")) == 1
    assert len(receiver.kept()) == 2


async def test_an_event_with_another_secret_waits_in_the_outbox_until_the_secret_is_right(
    receiver: Receiver, tmp_path: Path
) -> None:
    outbox = Outbox(StateFolder(tmp_path / "state"))
    telling = channel(receiver.url, OTHER_SECRET, outbox)
    assert not await telling.completed(0, VIDEO)
    await telling.close()
    assert receiver.lines(r'"POST /webhook HTTP/1.1" (\d+)', at_least=2) == ["401", "401"]
    assert receiver.kept() == []
    rotating = (OTHER_SECRET, SECRET)
    await redeliver(outbox, opener=OPENER, secrets=rotating, patience=QUICK)
    assert outbox.count() == 0
    receiver.lines("video 0 completed")


@pytest.mark.parametrize(("age", "status"), [(timedelta(minutes=4), 200), (timedelta(minutes=6), 401)])
def test_a_signature_is_good_for_five_minutes(receiver: Receiver, age: timedelta, status: int) -> None:
    assert post(receiver.url, *signed(completed_event(), datetime.now(UTC) - age)) == status


def test_what_is_unsigned_changed_or_no_text_is_refused(receiver: Receiver) -> None:
    body, headers = signed(completed_event(), datetime.now(UTC))
    assert post(receiver.url, body, {"Content-Type": "application/json"}) == 401
    assert post(receiver.url, body.replace("evt_1", "evt_2"), headers) == 401
    assert post(receiver.url, body, {**headers, "webhook-signature": "v1"}) == 401
    assert OPENER.post(receiver.url, b"\xff\xfe", headers, timeout_s=10.0).status == 401
    assert receiver.kept() == []
    assert post(receiver.url, body, headers) == 200


@pytest.mark.slow
async def test_a_crash_loses_no_event_and_handles_none_twice(tmp_path: Path) -> None:
    with Receiver(tmp_path) as first:
        assert await channel(first.url).completed(0, VIDEO)
        first.lines("video 0 completed")
        while first.kept()[0][1] == 0:  # the line is written before the row
            time.sleep(0.02)
        first.kill()
    body, _ = signed(
        envelopes.failed(
            FAILURE, http_code=422, message="no", event_id="evt_9", timestamp=datetime.now(UTC), index=1, total=2
        ),
        datetime.now(UTC),
    )
    with sqlite3.connect(first.inbox) as table:  # taken in, and killed before it was handled
        table.execute("INSERT INTO events (event_id, body) VALUES ('evt_9', ?)", (body,))
    table.close()
    with Receiver(tmp_path) as second:
        assert second.lines(r"abc video (\d) (?:failed|completed)") == ["1"]
        telling = channel(second.url)
        assert await telling.completed(0, VIDEO)
        assert await telling.failed(1, FAILURE, 422, "again")
        await telling.close()
        second.lines("failed", at_least=2)
        assert second.lines(r"abc video (\d) (?:failed|completed)", at_least=2) == ["1", "1"]
