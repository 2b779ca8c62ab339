"""The settings as a whole, and the signing of webhooks."""

from __future__ import annotations

from datetime import UTC, datetime

from standardwebhooks import Webhook

from worker.delivery.webhooks import envelopes
from worker.doctor.deployment import Deployment
from worker.doctor.report import Finding, fail, ok, together, warn

# Standard Webhooks 1.0: a secret is 24 to 64 random bytes.
_MAKE_ONE = "python -c \"import base64,os;print('whsec_'+base64.b64encode(os.urandom(24)).decode())\""
_EVENT_ID = "evt_doctor"


def check(deployment: Deployment) -> Finding:
    """Every value can be read, and none endangers what customers get."""
    settings = deployment.settings
    if deployment.problems:
        parted = [problem.partition(": ") for problem in deployment.problems]
        return fail(
            "; ".join(variable if colon else "a value cannot be read" for variable, colon, _ in parted),
            "; ".join(deployment.problems),
            stops_jobs=True,
        )
    preload = ", ".join(settings.preload) or "none"
    findings = [ok(f"serves {deployment.profile}, loads first: {preload}")]
    if settings.on_platform and deployment.profile == "demo":
        findings.append(
            warn("on the platform, the demo model answers customers", "unset MODEL_PROFILE to serve the real models")
        )
    if settings.sdk_log_level is not None and settings.sdk_log_level.upper() in ("DEBUG", "TRACE"):
        findings.append(
            warn("RunPod's SDK logs prompts and signed URLs", "unset RUNPOD_LOG_LEVEL and RUNPOD_DEBUG_LEVEL")
        )
    return together(findings)


def check_signing(deployment: Deployment) -> Finding:
    """A signature made with each secret verifies with it, as a receiver would do it."""
    if any(problem.startswith("WEBHOOK_SECRET") for problem in deployment.problems):
        return warn("not checked: WEBHOOK_SECRET cannot be read", "fix what the line settings says")
    secrets = deployment.settings.webhook_secrets
    if not secrets:
        return warn(
            "WEBHOOK_SECRET is not set: receivers cannot tell this worker's events from anybody's",
            f"set it to a secret such as one made by: {_MAKE_ONE}",
        )
    body = envelopes.serialised({"type": "doctor"})
    headers = envelopes.headers(body, event_id=_EVENT_ID, now=datetime.now(UTC), secrets=secrets)
    bad = [str(number) for number, secret in enumerate(secrets, 1) if not _verifies(secret, body, headers)]
    if bad:
        return fail(
            f"the signature does not verify with secret {', '.join(bad)} of {len(secrets)}",
            f"replace it by one made by: {_MAKE_ONE}",
        )
    return ok(f"signed and verified with {len(secrets)} secret{'s' if len(secrets) > 1 else ''}")


def _verifies(secret: str, body: str, headers: dict[str, str]) -> bool:
    try:
        Webhook(secret).verify(body, headers)
    except Exception:  # noqa: BLE001 - the library's own, and whatever a header that is not one makes it raise
        return False
    return True
