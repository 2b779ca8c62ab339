"""The doctor on the hub's token and the clock, over loopback: each failure has its line and its advice."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from tests.kits import s3_double
from tests.kits.doctor_kit import answering, deployment, say
from tests.kits.hub_server import GOOD_TOKEN, Fault, HubServer
from worker.doctor import network


def test_no_token_is_fine(tmp_path: Path) -> None:
    assert network.check_token(deployment(tmp_path)).status == "OK"


def test_a_good_token_is_told_by_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
    with answering(say(200, json.dumps({"name": "somebody"}).encode(), Content_Type="application/json")) as url:
        found = network.check_token(deployment(tmp_path, hub=url))
    assert (found.status, found.found) == ("OK", "the hub knows the token as that of somebody")


@pytest.mark.parametrize(("number", "status"), [(401, "FAIL"), (403, "FAIL"), (429, "WARN"), (503, "WARN")])
def test_what_the_hub_says_of_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, status: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_yesterday")
    with HubServer() as server:
        server.faults.append(Fault("/api/whoami-v2", number))
        found = network.check_token(deployment(tmp_path, hub=server.url))
    assert (found.status, found.stops_jobs) == (status, False)
    assert str(number) in found.found
    assert ("set HF_TOKEN to a valid token" in found.advice) == (status == "FAIL")
    assert "hf_of_yesterday" not in found.found + found.advice


def test_a_hub_that_cannot_be_reached_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
    found = network.check_token(deployment(tmp_path))
    assert found.status == "WARN"
    assert "cannot be reached" in found.found


def ahead(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("server_s", "status", "found"),
    [
        (0, "OK", "within 1 s of the clock of the hub"),
        (-50, "OK", "within"),
        (-90, "WARN", "s ahead of the clock of the hub"),
        (90, "WARN", "s behind the clock of the hub"),
        (-320, "FAIL", "s ahead of the clock of the hub: signatures of uploads, URLs and webhooks are refused"),
    ],
)
def test_the_clock_is_compared_with_the_date_that_a_server_tells(
    tmp_path: Path, server_s: float, status: str, found: str
) -> None:
    with answering(lambda handler: say(404, Date=ahead(server_s))(handler)) as url:
        finding = network.check_clock(deployment(tmp_path, hub=url))
    assert finding.status == status
    assert found in finding.found
    assert ("NTP" in finding.advice) == (status != "OK")


@pytest.mark.parametrize(
    ("offset_s", "status"), [(60, "OK"), (61, "WARN"), (-300, "WARN"), (-301, "FAIL"), (301, "FAIL")]
)
def test_the_limits_of_the_clock(offset_s: float, status: str) -> None:
    assert network.judge(offset_s, "hub").status == status


def test_the_storages_clock_comes_first(tmp_path: Path, bucket: s3_double.Double) -> None:
    found = network.check_clock(deployment(tmp_path))
    assert (found.status, found.found) == ("OK", "within 1 s of the clock of the storage")


@pytest.mark.parametrize("headers", [{}, {"Date": "yesterday"}])
def test_a_clock_that_nobody_tells_is_a_warning(tmp_path: Path, headers: dict[str, str]) -> None:
    with answering(say(200, **headers)) as url:
        found = network.check_clock(deployment(tmp_path, hub=url))
    assert found.status == "WARN"
    assert "date -u" in found.advice
    assert network.check_clock(deployment(tmp_path)).status == "WARN"


def test_the_offset_is_this_clock_less_the_servers() -> None:
    told = format_datetime(datetime.fromtimestamp(time.time() - 100, UTC), usegmt=True)
    with answering(say(200, Date=told)) as url:
        assert 98 < network.offset_of(url) < 110
