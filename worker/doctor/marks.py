"""The marks of AI origin: whether files are signed, with what, for how long, and whether the time stamps come."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from worker.base.errors import SettingsError
from worker.doctor.deployment import Deployment
from worker.doctor.report import Finding, fail, ok, together, warn
from worker.media.marks.marker import Marker

_SOON = timedelta(days=30)
_PAGE = "docs/ai-marks.md"


def check(deployment: Deployment) -> Finding:
    """Signs a small picture as a job would sign its files."""
    settings = deployment.settings
    if any(problem.startswith(("C2PA_", "AI_MARK", "AIGC_")) for problem in deployment.problems):
        return warn("not checked: a setting of the marks cannot be read", "fix what the line settings says")
    try:
        marker = Marker.from_settings(settings)
    except SettingsError as failure:
        return fail("files cannot be signed", "; ".join(failure.problems), stops_jobs=True)
    if not marker.is_on:
        return warn("AI_MARK=false: no file says that AI made it", f"unset it where the law asks for it ({_PAGE})")
    if marker.key is None:
        return ok("metadata in every file; not signed (C2PA_CERT_CHAIN and C2PA_PRIVATE_KEY are not set)")
    left = marker.key.expires_at - datetime.now(UTC)
    signed = f"signed with {marker.key.algorithm}; the certificate is good for {left.days} days"
    findings = [ok(signed)]
    if left < _SOON:
        findings = [warn(signed, "renew C2PA_CERT_CHAIN now: once it has expired, no file is signed")]
    if marker.tsa_url is None:
        findings.append(
            warn("no time stamps: a signature counts for nothing once its certificate has expired", "set C2PA_TSA_URL")
        )
    else:
        findings.append(_stamped(marker, marker.tsa_url))
    return together(findings)


def _stamped(marker: Marker, tsa_url: str) -> Finding:
    from worker.media.marks.signing import NoTimeStamp

    assert marker.key is not None
    try:
        marker.key.try_out(tsa_url, limit_s=marker.tsa_limit_s)
    except NoTimeStamp as failure:
        return warn(f"the time stamp authority: {failure}", "check C2PA_TSA_URL and the network of the worker")
    return ok("the time stamp authority answers")
