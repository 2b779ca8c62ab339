"""A webhook receiver: verifies every event, answers at once, and handles each final event once, also after a crash.

    pip install fastapi uvicorn standardwebhooks
    WEBHOOK_SECRET=whsec_... uvicorn --app-dir examples receiver:app --port 8080

The events are kept in a file of the temporary folder: let INBOX name one that stays. Run one process. A proxy in front
of it must pass the body on unchanged: the signature is over its bytes.
"""

import json
import logging
import os
import sqlite3
import sys
import tempfile
import threading
from pathlib import Path

from fastapi import BackgroundTasks, FastAPI, Request, Response
from standardwebhooks import Webhook, WebhookVerificationError

log = logging.getLogger("uvicorn.error")
SECRET = os.environ.get("WEBHOOK_SECRET", "")
if not SECRET.startswith("whsec_") or len(SECRET) < 38:
    sys.exit("error: set WEBHOOK_SECRET to the worker's own: whsec_ and the base64 of 24 to 64 bytes")
webhook = Webhook(SECRET)
INBOX = os.environ.get("INBOX", str(Path(tempfile.gettempdir(), "videogen-inbox.sqlite3")))
inbox = sqlite3.connect(INBOX, check_same_thread=False, isolation_level=None)
inbox.execute("CREATE TABLE IF NOT EXISTS events (event_id TEXT PRIMARY KEY, body TEXT, handled INTEGER DEFAULT 0)")
working = threading.Lock()
app = FastAPI()


@app.post("/webhook")
async def receive(request: Request, after: BackgroundTasks) -> Response:
    body = await request.body()
    try:
        event = webhook.verify(body, dict(request.headers))
    except (WebhookVerificationError, ValueError):  # ValueError: headers or a body that are no text
        return Response(status_code=401)
    if event["type"] == "progress":
        log.info("%s: %d%% %s", event["job_id"], event["progress"], event["status"])
    else:  # a second delivery has the same event_id: the table has it already
        inbox.execute("INSERT OR IGNORE INTO events (event_id, body) VALUES (?, ?)", (event["event_id"], body.decode()))
        after.add_task(work)
    return Response(status_code=200)


def work() -> None:
    """Handle what waits, in the order of arrival. What fails stays for the next event or the next start."""
    with working:
        waiting = inbox.execute("SELECT event_id, body FROM events WHERE NOT handled ORDER BY rowid").fetchall()
        for event_id, body in waiting:
            try:
                handle(json.loads(body))
                inbox.execute("UPDATE events SET handled = 1 WHERE event_id = ?", (event_id,))
            except Exception:
                log.exception("event %s is not handled yet", event_id)


def handle(event: dict) -> None:
    """Your own code. A crash in the middle of it means that it is called again with the same event."""
    data = event["data"]
    outcome = data["video_url"] if event["type"] == "completed" else data["error"]["code"]
    log.info("%s video %s %s: %s", data["job_id"], event["index"], event["type"], outcome)


threading.Thread(target=work, name="left by the last run", daemon=True).start()
