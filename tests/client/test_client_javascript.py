"""client/typescript/videogen.mjs in Node, or in Deno where there is none, against RunPod's API on loopback."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.kits.client_cases import BODY, ENDS, FORGED, OTHER, SECRET, TRAINING, signed
from tests.kits.endpoint_double import API_KEY, ENDPOINT_ID, EndpointDouble, completed, failed, in_progress
from tests.kits.javascript import DENO, ENVIRONMENT, NODE
from tests.kits.paid_endpoint import PaidEndpoint, answer_of, video_of
from tests.kits.slow import slow

MODULE = Path(__file__).resolve().parents[2] / "client" / "typescript" / "videogen.mjs"
RUNS = [NODE, "--input-type=module"] if NODE is not None else [DENO, "run", "--quiet", "--allow-net", "--no-lock"]
CONTENT = random.Random(1).randbytes(50_000)
HEAD = """
import { Client, verifyWebhook } from %s;
const given = %s;
const client = new Client({ ...given.client, pollMs: 5, requestMs: 3000, attempts: 6, firstWaitMs: 1 });
const seen = [];
const onProgress = (progress) => seen.push(progress);
const hex = (byte) => byte.toString(16).padStart(2, "0");
const sha256 = async (bytes) => Array.from(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)), hex).join("");
let found;
try { found = { value: await (async () => { %s })() }; }
catch (error) {
  if (error.code === undefined) throw error;
  found = { error: { ...error, message: error.message } };
}
console.log(JSON.stringify({ ...found, seen }));
"""
pytestmark = pytest.mark.skipif(NODE is None and DENO is None, reason="there is neither node nor deno")


def run(code: str, endpoint: EndpointDouble | None = None, **given: Any) -> dict[str, Any]:
    url = "http://localhost:1/v2" if endpoint is None else endpoint.url
    given["client"] = {"endpointId": ENDPOINT_ID, "apiKey": API_KEY, "baseUrl": url, **given.get("client", {})}
    program = HEAD % (json.dumps(MODULE.as_uri()), json.dumps(given), code)
    command = [*map(str, RUNS), "-"]
    done = subprocess.run(
        command, env=ENVIRONMENT, input=program, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_training_is_an_answer_too(scripted: EndpointDouble) -> None:
    scripted.plays(in_progress(3), completed(TRAINING))
    code = 'return client.generate({ train: { training_data_url: "https://example.com/style.zip" } });'
    assert run(code, scripted)["value"] == TRAINING
    code = 'return client.train({ training_data_url: "https://example.com/style.zip" }, { jobId: "style-1" });'
    assert run(code, scripted)["value"] == TRAINING
    assert scripted.requests("run")[-1].body["input"]["job_id"] == "style-1"


def test_a_video_is_made_once_and_fetched_through_faults(endpoint: PaidEndpoint) -> None:
    endpoint.refuse = {"run": [503, None, 429], "status": [None, 502]}
    endpoint.lose = {"run": 1, "status": 1}
    endpoint.file_faults["order-1.mp4"] = [("wrong", 0), ("status", 503), *[("cut", 1500)] * 10]
    code = """
    const answer = await client.generate({ prompt: "a cat", job_id: "order-1" }, { onProgress });
    return sha256(await client.download(answer.videos[0]));"""
    found = run(code, endpoint)
    assert found["value"] == hashlib.sha256(endpoint.files["order-1.mp4"]).hexdigest()
    assert [each["progress"] for each in found["seen"]] == [50]
    assert sum(endpoint.paid.values()) == 1
    assert {seen.headers.get("authorization") for seen in endpoint.requests("file")} == {None}


@pytest.fixture
def scripted() -> Any:
    with EndpointDouble() as double:
        yield double


GENERATE = 'return client.generate({ prompt: "a cat" }, { timeoutMs: 1000 });'


@pytest.mark.parametrize("end", [*list(ENDS)[:2], *slow(*list(ENDS)[2:])])
def test_a_job_without_a_video_has_the_code_that_python_gives(end: str, scripted: EndpointDouble) -> None:
    state, _, has = ENDS[end]
    scripted.plays(in_progress(3), state)
    error = run(GENERATE, scripted)["error"]
    shown = {name: error[name] for name in has if name != "message"}
    assert shown == {name: value for name, value in has.items() if name != "message"}
    assert has.get("message", "") in error["message"]


@pytest.mark.parametrize(
    ("status", "code", "retryable", "requests"),
    [(400, "invalid_request", False, 1), (401, "refused", False, 1), (429, "unavailable", True, 6)],
)
def test_what_the_endpoint_refuses_has_a_code(
    status: int, code: str, retryable: bool, requests: int, scripted: EndpointDouble
) -> None:
    scripted.refuse["run"] = [status] * 20
    error = run(GENERATE, scripted)["error"]
    assert (error["code"], error["retryable"], len(scripted.requests("run"))) == (code, retryable, requests)


def test_a_late_success_and_a_late_cancellation_keep_the_answer(scripted: EndpointDouble) -> None:
    scripted.plays(in_progress(5))
    error = run(GENERATE, scripted)["error"]
    assert (error["code"], error["retryable"]) == ("wait_timeout", True)
    answer = answer_of(video_of(scripted, "0.mp4", CONTENT))
    scripted.plays(completed(answer))
    assert run(f"return client.result({json.dumps(error['job'])});", scripted)["value"] == answer
    scripted.refuse["cancel"] = [400]
    assert run('return client.cancel("job-1");', scripted)["value"]["output"] == answer
    scripted.plays(in_progress(5))
    scripted.refuse["cancel"] = [400]
    assert run('return client.cancel("job-1");', scripted)["error"]["code"] == "cancel_refused"
    assert run('return client.cancel("job-1");', scripted)["value"]["status"] == "CANCELLED"


def test_other_bytes_and_links_that_expired_are_errors(scripted: EndpointDouble) -> None:
    video = video_of(scripted, "0.mp4", CONTENT)
    scripted.files["0.mp4"] = bytes(len(CONTENT))
    code = "return client.download(given.video);"
    assert run(code, scripted, video=video)["error"]["code"] == "download_corrupt"
    scripted.file_faults["0.mp4"] = [("status", 403)]
    error = run(code, scripted, video=video)["error"]
    assert (error["code"], error["retryable"]) == ("download_failed", False)


def test_a_job_that_failed_is_asked_for_no_longer(scripted: EndpointDouble) -> None:
    scripted.plays(failed("gone"))
    run(GENERATE, scripted)
    assert len(scripted.requests("status")) == 1


VERIFY = "return verifyWebhook(given.body, given.headers, given.secret);"


def test_a_webhook_is_genuine_or_refused() -> None:
    event = run(VERIFY, body=BODY.decode(), headers=signed(BODY), secret=f"{OTHER} {SECRET}")
    assert event["value"] == json.loads(BODY)
    for name, (body, headers, secret) in FORGED.items():
        found = run(VERIFY, body=body.decode(errors="replace"), headers=headers, secret=secret)
        assert found.get("error", {}).get("code") == "invalid_signature", name
