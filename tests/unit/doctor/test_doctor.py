"""The doctor as a whole: its command, its report, and checks that hang, break or find secrets."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.kits import s3_double
from tests.kits.doctor_kit import NOWHERE, SECRET, Bucket, answering, deployment, say
from tests.kits.loopback import Server
from worker.base import settings
from worker.doctor import CHECKS, Check, report
from worker.doctor.checks import BESIDE_LOADING, before_loading
from worker.doctor.deployment import Deployment, readable_settings
from worker.doctor.report import Finding, Line, fail, from_message, ok, together, warn
from worker.doctor.runner import Running, run_here

ROOT = Path(__file__).resolve().parents[3]
NAMES = [check.name for check in CHECKS]
# The start of a process on a machine that is busy, with the limits of the checks.
WITHIN_S = 180.0


def doctor(home: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """The command in a process of its own: exit status, standard output, standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "worker.doctor", *arguments],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": NOWHERE, "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def by_name(output: str) -> dict[str, dict[str, Any]]:
    """The checks of a JSON report."""
    found = json.loads(output)
    assert set(found) == {"ok", "seconds", "checks"}
    for check in found["checks"]:
        assert set(check) == {"name", "status", "found", "advice", "seconds"}
    return {check["name"]: check for check in found["checks"]}


@contextmanager
def services(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A storage and a hub that work; yields the environment that names them."""
    monkeypatch.setattr(s3_double, "Handler", Bucket)
    with ExitStack() as stack:
        bucket = stack.enter_context(s3_double.serving())
        name = json.dumps({"name": "somebody"}).encode()
        hub = stack.enter_context(answering(say(200, name, Content_Type="application/json")))
        yield {
            **bucket.environment(),
            "WEBHOOK_SECRET": SECRET,
            "HF_TOKEN": "hf_a_good_token",
            "HF_ENDPOINT": hub,
        }


def test_a_healthy_deployment_has_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with services(monkeypatch) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        deployment = replace(Deployment.tried(*readable_settings()), hub=environment["HF_ENDPOINT"])
        lines = list(Running(CHECKS, deployment).lines())
    assert_healthy({line.name: line.status for line in lines})
    assert not list(tmp_path.rglob("*.mp4"))


@pytest.mark.slow
def test_a_healthy_deployment_is_one_line_of_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with services(monkeypatch) as environment:
        status, output, log = doctor(tmp_path, "--json", **environment)
    assert_healthy({name: line["status"] for name, line in by_name(output).items()})
    assert (status, log) == (0, "")
    assert_no_secret(output, environment)


def assert_healthy(statuses: dict[str, str]) -> None:
    assert list(statuses) == NAMES
    assert "FAIL" not in statuses.values()
    for name in ("settings", "webhook signing", "gpu", "state", "ffmpeg", "storage", "hub token", "clock"):
        assert (name, statuses[name]) == (name, "OK")


def assert_no_secret(told: str, environment: dict[str, str]) -> None:
    secrets = [value for name, value in environment.items() if name.endswith(("_KEY", "_SECRET", "_TOKEN"))]
    assert len(secrets) == 4
    assert not [secret for secret in secrets if secret in told]


@pytest.mark.slow  # the report's own test has its lines
def test_a_healthy_deployment_is_shown_to_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with services(monkeypatch) as environment:
        status, shown, log = doctor(tmp_path, **environment)
    assert status == 0
    assert [line.split("  ")[0] for line in shown.splitlines() if line[:4] in ("OK  ", "WARN")] != []
    assert re.search(rf"^{len(NAMES)} checks in [0-9.]+ s: [0-9]+ OK, [0-9]+ WARN, 0 FAIL$", shown, re.MULTILINE)
    assert_no_secret(shown + log, environment)


@pytest.mark.slow  # the files test_checks_* have each failure alone
def test_many_failures_at_once_each_have_their_line_and_their_advice(tmp_path: Path) -> None:
    status, output, _ = doctor(
        tmp_path,
        "--json",
        MODEL_PROFILE="wan2.2",
        WEBHOOK_SECRET="not base64!",
        MAX_FRAMES="many",
        DIGITAL_OCEAN_BUCKET_NAME="videos",
        STATE_DIR="/proc/state",
        HF_TOKEN="hf_token",
        IMAGEIO_FFMPEG_EXE="/bin/false",
    )
    lines = by_name(output)
    assert status == 1
    assert list(lines) == NAMES
    for name in ("settings", "gpu", "state", "ffmpeg"):
        assert (name, lines[name]["status"]) == (name, "FAIL")
        assert lines[name]["advice"]
    assert {"MAX_FRAMES", "WEBHOOK_SECRET"} < set(lines["settings"]["found"].split("; "))
    for variable in ("MAX_FRAMES: ", "WEBHOOK_SECRET: ", "DIGITAL_OCEAN_ENDPOINT_URL"):
        assert variable in lines["settings"]["advice"]
    for name in ("webhook signing", "storage", "hub token", "clock", "weights i2v", "plan i2v"):
        assert (name, lines[name]["status"]) == (name, "WARN")
        assert lines[name]["advice"]
    assert "not base64!" not in output


@pytest.mark.slow
def test_a_storage_and_a_hub_that_hang_do_not_hang_the_doctor(tmp_path: Path) -> None:
    began = time.monotonic()
    with Server(lambda *_: silent.hold()) as silent:
        address = silent.url("").rstrip("/")
        status, output, _ = doctor(
            tmp_path,
            "--json",
            DIGITAL_OCEAN_ENDPOINT_URL=address,
            DIGITAL_OCEAN_BUCKET_NAME="videos",
            DIGITAL_OCEAN_BUCKET_ACCESS_KEY="the-access-key",
            DIGITAL_OCEAN_BUCKET_SECRET_KEY="the-secret-key",
            HF_TOKEN="hf_a_good_token",
            HF_ENDPOINT=address,
        )
        seconds = time.monotonic() - began
    lines = by_name(output)
    assert status == 1
    assert lines["storage"]["status"] == "FAIL"
    assert "check DIGITAL_OCEAN_ENDPOINT_URL" in lines["storage"]["advice"]
    assert (lines["hub token"]["status"], lines["hub token"]["found"]) == ("WARN", "did not answer in 8 s")
    assert (lines["clock"]["status"], lines["gpu"]["status"]) == ("WARN", "OK")
    assert json.loads(output)["seconds"] < 20
    assert seconds < 60.0


@pytest.mark.slow
def test_every_byte_of_the_weights_is_read_on_demand(tmp_path: Path) -> None:
    status, output, _ = doctor(tmp_path, "--json", "--verify-weights")
    assert (status, list(by_name(output))) == (0, ["weights i2v", "weights t2v", "weights 5b"])


def test_the_sum_of_the_limits_is_below_twenty_seconds() -> None:
    from worker.doctor.deployment import GPU_LIMIT_S

    assert max(check.limit_s for check in CHECKS) + GPU_LIMIT_S < 20
    assert len(set(NAMES)) == len(NAMES)


def quick(name: str, run: Any, **more: Any) -> Check:
    return Check(name, run, **{"limit_s": 10.0, **more})


def test_a_check_that_hangs_becomes_a_line_and_holds_up_no_other(tmp_path: Path) -> None:
    over = threading.Event()

    def hang(_: object) -> Finding:
        over.wait(30)
        return ok("late")

    checks = [
        quick("slow", hang, limit_s=0.1, silent="WARN", advice="look at it"),
        quick("good", lambda _: ok("fine")),
        quick("slower", hang, limit_s=5.0),
    ]
    try:
        slow, good, slower = Running(checks, deployment(tmp_path)).lines(at_most_s=0.3)
    finally:
        over.set()
    assert (slow.status, slow.found, slow.advice, slow.silent) == ("WARN", "did not answer in 0 s", "look at it", True)
    assert (good.status, good.found, good.silent) == ("OK", "fine", False)
    assert (slower.status, slower.stops_jobs) == ("FAIL", False)


def test_a_check_that_breaks_becomes_a_line_that_tells_nothing_of_its_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(_: object) -> Finding:
        raise LookupError("the text may hold anything")

    checks = [quick("broken", break_down)]
    for line in (*Running(checks, deployment(tmp_path)).lines(), *run_here(checks, deployment(tmp_path))):
        assert (line.status, line.found) == ("FAIL", "the check itself failed (LookupError)")
    assert "the text may hold anything" in caplog.text  # which handlers redact


def test_no_secret_passes_the_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_a_token")
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    leaky = quick("leaky", lambda _: warn("the token is hf_a_token", f"replace {SECRET}"))
    for line in (*Running([leaky], deployment(tmp_path)).lines(), *run_here([leaky], deployment(tmp_path))):
        assert (line.found, line.advice) == ("the token is [hidden]", "replace [hidden]")


def test_the_text_is_aligned_wrapped_and_coloured_on_a_terminal_alone() -> None:
    line = Line("storage", "FAIL", "the storage refused " + "the upload " * 9, "check \x1b[2Jthe key", 1.0)
    shown = report.text(line, name_width=9, width=60).splitlines()
    assert shown[0].startswith("FAIL  storage    the storage refused")
    assert all(len(each) <= 60 for each in shown)
    assert {each[:17].strip() for each in shown[1:]} == {""}
    assert shown[-1].strip() == "-> check ?[2Jthe key"
    assert "\x1b" not in "".join(shown)
    assert report.text(line, name_width=9, width=60, colour=True).startswith("\x1b[31mFAIL")


def test_json_holds_the_same_and_says_whether_it_passed() -> None:
    lines = [Line("a", "OK", "fine", "", 0.12345), Line("b", "WARN", "so so", "mend", 1.0)]
    found = json.loads(report.as_json(lines, 2.0))
    assert found["ok"] is True
    assert found["checks"][0] == {"name": "a", "status": "OK", "found": "fine", "advice": "", "seconds": 0.123}
    assert json.loads(report.as_json([*lines, Line("c", "FAIL", "bad", "mend", 1.0)], 2.0))["ok"] is False
    assert report.summary(lines, 2.0) == "2 checks in 2.0 s: 1 OK, 1 WARN, 0 FAIL"


def test_findings_together_are_as_bad_as_the_worst() -> None:
    both = together([ok("a"), fail("b", "mend b", stops_jobs=True), warn("c", "mend c")])
    assert both == Finding("FAIL", "a; b; c", "mend b; mend c", stops_jobs=True)
    assert from_message("A: it is bad: mend it") == ("A: it is bad", "mend it")
    assert from_message("it is bad") == ("it is bad", "")


PAGE = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_every_check_is_documented(name: str) -> None:
    row = [line for line in PAGE.splitlines() if line.startswith("| ") and f"`{name}`" in line.split("|")[1]]
    assert len(row) == 1
    assert all(cell.strip() for cell in row[0].split("|")[1:-1])


def test_the_page_names_no_check_that_is_not_there() -> None:
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    assert [name for row in rows for name in re.findall(r"`([^`]+)`", row)] == NAMES


def test_the_page_says_which_checks_the_start_makes() -> None:
    first = {check.name for check in before_loading(settings.PRELOADABLE)}
    beside = {check.name for check in BESIDE_LOADING}
    assert first | beside <= set(NAMES)
    for line in PAGE.splitlines():
        if line.startswith("| `"):
            names = re.findall(r"`([^`]+)`", line.split("|")[1])
            when = line.split("|")[-2].strip()
            assert all((name in first) == when.startswith("first") for name in names), line
            assert all((name in beside) == when.startswith("beside") for name in names), line


def test_the_sample_of_the_page_is_a_report_of_these_checks() -> None:
    (sample,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert [name for name in NAMES if re.search(rf"^(OK|WARN|FAIL) +{name}  ", sample, re.MULTILINE)] == NAMES
    assert re.search(rf"^{len(NAMES)} checks in ", sample, re.MULTILINE)
