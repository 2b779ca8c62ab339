"""The doctor's line on the marks of AI origin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kits.c2pa_kit import Authority, Signer
from tests.kits.doctor_kit import NOWHERE, deployment
from worker.doctor import marks
from worker.doctor.report import Finding, Status

ROOT = Authority()
SIGNER = ROOT.issue(days=31)


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Finding]:
    def run(signer: Signer | None = None, **environment: str) -> Finding:
        if signer is not None:
            environment |= {"C2PA_CERT_CHAIN": signer.chain, "C2PA_PRIVATE_KEY": signer.key}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return marks.check(deployment(tmp_path))

    return run


@pytest.mark.parametrize(
    ("signer", "environment", "status", "found", "advice"),
    [
        (None, {}, "OK", "metadata in every file; not signed", ""),
        (None, {"AI_MARK": "false"}, "WARN", "AI_MARK=false", "docs/ai-marks.md"),
        (None, {"C2PA_TSA_URL": "nowhere"}, "WARN", "not checked", "the line settings"),
        (None, {"C2PA_CERT_CHAIN": SIGNER.chain}, "FAIL", "files cannot be signed", "C2PA_PRIVATE_KEY is not set"),
        (ROOT.issue(days=-1), {}, "FAIL", "files cannot be signed", "expired on"),
        (SIGNER, {}, "WARN", "signed with es256; the certificate is good for 30 days; no time stamps", "C2PA_TSA_URL"),
        (ROOT.issue(days=29.9), {}, "WARN", "good for 29 days", "renew C2PA_CERT_CHAIN now"),
        (
            SIGNER,
            {"C2PA_TSA_URL": NOWHERE},
            "WARN",
            "the time stamp authority: it sent no time stamp",
            "check C2PA_TSA_URL",
        ),
    ],
)
def test_what_is_found_and_advised(
    check: Callable[..., Finding],
    signer: Signer | None,
    environment: dict[str, str],
    status: Status,
    found: str,
    advice: str,
) -> None:
    finding = check(signer, **environment)
    assert (finding.status, finding.stops_jobs) == (status, status == "FAIL")
    assert found in finding.found
    assert advice in finding.advice
    assert ("renew C2PA_CERT_CHAIN" in finding.advice) == ("renew" in advice)


def test_a_time_stamp_authority_that_answers(check: Callable[..., Finding]) -> None:
    with ROOT.time_stamps() as url:
        finding = check(SIGNER, C2PA_TSA_URL=url)
    assert (finding.status, finding.advice) == ("OK", "")
    assert "the time stamp authority answers" in finding.found
