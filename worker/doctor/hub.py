"""The model hub: does it take the token, and what does its clock say?"""

from __future__ import annotations

import httpx2
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from worker.doctor.deployment import Deployment
from worker.doctor.finding import Finding, fail, ok, warn

_LATER = "nothing to do where every model is on the volume; otherwise check the network of the worker"


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


def address(deployment: Deployment) -> str:
    return deployment.hub if deployment.hub is not None else constants.ENDPOINT
