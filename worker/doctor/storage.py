"""The configured storage: a small object goes the way of a video, is read back as a customer would, and is deleted."""

from __future__ import annotations

from collections.abc import Callable

import urllib3
from botocore.exceptions import ClientError

from worker.base.errors import SettingsError, UploadFailed
from worker.delivery.storage import STORAGES
from worker.delivery.storage.base import VIDEO_SUFFIX
from worker.delivery.storage.spaces_errors import facts_of
from worker.doctor import disks
from worker.doctor.deployment import Deployment
from worker.doctor.finding import Finding, fail, from_message, ok, together, warn
from worker.doctor.storage_probes import CONNECT_TIMEOUT_S, CONTENT, PROBES, READ_TIMEOUT_S, Probe, new_key, send

_TRANSIENT = frozenset({408, 429})
_TRANSIENT_CODES = frozenset({"RequestTimeout", "SlowDown"})  # S3 answers 400 and 503 to them


def check(deployment: Deployment) -> Finding:
    """Write, read and delete a small object with the configured storage."""
    return _with_probe(deployment, _write_read_delete)


def check_accepts(deployment: Deployment) -> Finding:
    """For the start: whether the storage takes uploads with this key, without leaving an object."""

    def ask(deployment: Deployment, probe: Probe) -> Finding:
        try:
            probe.accepts()
        except UploadFailed as failure:
            return refusal(failure)
        except OSError as failure:
            reason, advice = disks.reason_of(failure)
            return fail(f"{probe.storage.describe()} {reason}", advice, stops_jobs=True)
        return _accepted(deployment, probe, "takes uploads")

    return _with_probe(deployment, ask)


def _with_probe(deployment: Deployment, ask: Callable[[Deployment, Probe], Finding]) -> Finding:
    if deployment.storage_is_unreadable:
        return warn("not checked: the storage's settings cannot be read", "mend what the line settings says")
    settings = deployment.settings
    kind = next(kind for kind in STORAGES if kind.is_configured(settings))
    try:
        with PROBES[kind](settings) as probe:
            return ask(deployment, probe)
    except SettingsError as failure:
        found, advice = from_message("; ".join(failure.problems))
        return fail(found, advice, stops_jobs=True)


def _write_read_delete(deployment: Deployment, probe: Probe) -> Finding:
    key = new_key()
    try:
        link = send(probe.storage, key)
    except UploadFailed as failure:
        return refusal(failure)
    findings = [_accepted(deployment, probe, "an object was written")]
    try:
        came_back = probe.read(key + VIDEO_SUFFIX) == CONTENT
        findings.append(ok("read") if came_back else fail("it came back changed", "send its operator this line"))
    except (UploadFailed, OSError) as failure:
        findings.append(warn(f"it could not be read{_facts(failure)}", "allow the key to read objects of the bucket"))
    findings += _link(link)
    try:
        probe.delete(key + VIDEO_SUFFIX)
        findings.append(ok("deleted"))
    except (UploadFailed, OSError) as failure:
        advice = f"allow the key to delete objects, or delete {key}{VIDEO_SUFFIX} yourself: nothing else needs it"
        findings.append(warn(f"it could not be deleted{_facts(failure)}", advice))
    return together(findings)


def refusal(failure: UploadFailed) -> Finding:
    """An upload that failed: fatal where the storage said no, and may pass where it was silent or busy."""
    found, advice = from_message(failure.message)
    return fail(f"{found}{_facts(failure)}", advice, stops_jobs=_is_final(failure.__cause__))


def _accepted(deployment: Deployment, probe: Probe, found: str) -> Finding:
    settings = deployment.settings
    if settings.on_platform and not settings.storage_is_remote:
        return warn(
            f"{probe.storage.describe()}: {found}, but videos stay on this worker and their URLs are file://",
            "set the four DIGITAL_OCEAN_* variables",
        )
    return ok(f"{probe.storage.describe()}: {found}")


def _is_final(cause: BaseException | None) -> bool:
    if isinstance(cause, ClientError):
        status = int(cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code = cause.response.get("Error", {}).get("Code")
        return status < 500 and status not in _TRANSIENT and code not in _TRANSIENT_CODES
    # A folder that cannot be written to stays so; what the network does may pass.
    return isinstance(cause, OSError) and not isinstance(cause, (ConnectionError, TimeoutError))


def _facts(failure: Exception) -> str:
    cause = failure.__cause__
    return f" ({facts_of(cause)})" if isinstance(cause, ClientError) else ""


def _link(url: str) -> list[Finding]:
    """Whether the URL that customers get leads to the object. The URL may be signed and is never shown."""
    if not url.startswith("http"):
        return []
    advice = "check DIGITAL_OCEAN_BUCKET_URL, and that STORAGE_ACL fits the bucket: customers get URLs like this one"
    timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S)
    try:
        answer = urllib3.request("GET", url, timeout=timeout, retries=False)
    except urllib3.exceptions.HTTPError as failure:
        return [warn(f"its public URL cannot be reached ({type(failure).__name__})", advice)]
    if answer.status != 200:
        return [warn(f"its public URL answers {answer.status}", advice)]
    if answer.data != CONTENT:
        return [warn("its public URL leads to something else", advice)]
    return [ok("its public URL works")]
