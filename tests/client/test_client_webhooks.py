"""Webhooks that the client is asked to verify."""

from __future__ import annotations

import pytest

from tests.kits.client_cases import BODY, FORGED, OTHER, SECRET, signed
from videogen_client import Client, InvalidSignature, verify_webhook


@pytest.mark.parametrize("secret", [SECRET, f"{OTHER} {SECRET}"], ids=["one", "two"])
def test_a_genuine_webhook_is_the_event(secret: str) -> None:
    assert verify_webhook(BODY, signed(BODY), secret) == {"type": "progress", "job_id": "a"}


@pytest.mark.parametrize(("body", "headers", "secret"), FORGED.values(), ids=FORGED)
def test_a_forged_webhook_is_refused(body: bytes, headers: dict[str, str], secret: str) -> None:
    with pytest.raises(InvalidSignature):
        Client.verify_webhook(body, headers, secret)
