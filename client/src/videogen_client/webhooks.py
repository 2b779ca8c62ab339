"""Whether a webhook is genuine: Standard Webhooks 1.0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError

from .errors import InvalidSignature, UnexpectedAnswer
from .types import Webhook


def verify_webhook(body: bytes, headers: Mapping[str, str], secret: str) -> Webhook:
    """The event in `body`, which is what came over the wire, not JSON that was serialised again.

    `secret` is the worker's `WEBHOOK_SECRET`; of several, separated by spaces, one must fit. Raises InvalidSignature.
    """
    if not secret.split():
        raise InvalidSignature("the secret is empty: give the worker's WEBHOOK_SECRET")
    for each in secret.split():
        try:
            event = Verifier(each).verify(body, dict(headers))
        except (WebhookVerificationError, ValueError):  # ValueError: headers, a body or a secret that cannot be read
            continue
        if not isinstance(event, dict) or "type" not in event:
            raise UnexpectedAnswer("the signature is right, but this is no event of a worker")
        return cast(Webhook, event)
    raise InvalidSignature("no signature fits, or its time is more than 5 minutes off: answer 401")
