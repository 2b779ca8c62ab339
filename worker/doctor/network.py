"""The network: does the hub take the token, and is the clock right?"""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

import httpx2
import urllib3
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from worker.base.errors import SettingsError
from worker.delivery.storage.spaces_place import place_of
from worker.doctor.deployment import Deployment
from worker.doctor.report import Finding, fail, ok, warn

_LATER = "nothing to do where every model is on the volume; otherwise check the network of the worker"
WARN_ABOVE_S = 60.0
FAIL_ABOVE_S = 300.0  # what receivers of Standard Webhooks allow; S3 servers allow 900 s
_TIMEOUT_S = 3.0
_ADVICE = "end this worker, so that the platform starts another on another machine; on your own machine, run NTP"


def check_token(deployment: Deployment) -> Finding:
    """Asks the hub whose token HF_TOKEN is."""
    token = deployment.settings.hub_token
    if token is None:
        return ok("HF_TOKEN is not set; the Wan models need none")
    try:
        answer = HfApi(deployment.hub, token=token).whoami(token)
    except OfflineModeIsEnabled:
        return warn("not checked: HF_HUB_OFFLINE is set", "unset it where models are to be downloaded")
    except HfHubHTTPError as failure:
        status = failure.response.status_code
        if status in (401, 403):
            return fail(f"the hub refuses HF_TOKEN ({status})", "set HF_TOKEN to a valid token, or unset it")
        return warn(f"the hub answers {status}, so the token could not be checked", "try again later")
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as failure:
        return warn(f"the hub cannot be reached ({type(failure).__name__})", _LATER)
    name = answer.get("name")
    return ok(f"the hub knows the token as that of {name}" if isinstance(name, str) else "the hub takes the token")


def check_clock(deployment: Deployment) -> Finding:
    """Compares with the storage, or where it does not respond with the hub."""
    for name, url in _sources(deployment):
        try:
            offset_s = offset_of(url)
        except (urllib3.exceptions.HTTPError, ValueError):
            continue
        return judge(offset_s, name)
    return warn(
        "could not be compared: neither storage nor hub sent the time",
        "compare the output of `date -u` with a clock that is right",
    )


def judge(offset_s: float, source: str) -> Finding:
    """`offset_s`: how far this clock is ahead of that of `source`, to the second."""
    found = f"{abs(offset_s):.0f} s {'ahead of' if offset_s > 0 else 'behind'} the clock of the {source}"
    if abs(offset_s) > FAIL_ABOVE_S:
        return fail(f"{found}: signatures of uploads, URLs and webhooks are refused", _ADVICE)
    if abs(offset_s) > WARN_ABOVE_S:
        return warn(f"{found}: signatures are refused above 300 s", _ADVICE)
    return ok(f"within {max(abs(offset_s), 1.0):.0f} s of the clock of the {source}")


def offset_of(url: str) -> float:
    """Seconds that this clock is ahead of the server's Date header, whatever its status.

    Raises ValueError where there is no such header, and what urllib3 raises.
    """
    began = time.time()
    answer = urllib3.request("HEAD", url, timeout=urllib3.Timeout(_TIMEOUT_S), retries=False, redirect=False)
    theirs = parsedate_to_datetime(answer.headers.get("Date", "")).timestamp()
    # The header is cut to the second, and was written somewhere between request and response.
    return (began + time.time()) / 2 - (theirs + 0.5)


def _sources(deployment: Deployment) -> list[tuple[str, str]]:
    settings = deployment.settings
    sources = [("hub", _hub(deployment))]
    if settings.storage_endpoint_url is not None and settings.storage_bucket is not None:
        try:
            place = place_of(settings.storage_endpoint_url, settings.storage_bucket, settings.storage_region)
        except SettingsError:
            return sources
        sources.insert(0, ("storage", place.endpoint_url))
    return sources


def _hub(deployment: Deployment) -> str:
    return deployment.hub if deployment.hub is not None else constants.ENDPOINT
