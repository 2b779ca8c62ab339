"""The doctor on the storage, over loopback: each failure has its line and its advice."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.kits import s3_double
from tests.kits.doctor_kit import NOWHERE, answering, configure, deployment, key_of, say
from tests.kits.s3_double import BUCKET
from worker.base.errors import UploadFailed
from worker.delivery.storage import STORAGES
from worker.doctor import storage
from worker.doctor.report import Finding

KEYS = "check DIGITAL_OCEAN_BUCKET_ACCESS_KEY and DIGITAL_OCEAN_BUCKET_SECRET_KEY"


def test_a_real_s3_server_is_written_read_and_left_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint_url = f"http://{host}:{port}"
        configure(monkeypatch, endpoint_url)
        forget = urllib.request.Request(f"{endpoint_url}/moto-api/reset", method="POST")
        urllib.request.urlopen(forget).close()  # its buckets are those of the whole process
        own = boto3.client(
            "s3",
            endpoint_url=endpoint_url,
            region_name="us-east-1",
            aws_access_key_id="the-access-key",
            aws_secret_access_key="the-secret-key",
        )
        absent = storage.check(deployment(tmp_path))
        own.create_bucket(Bucket=BUCKET)
        found = storage.check(deployment(tmp_path))
        accepted = storage.check_accepts(deployment(tmp_path))
        left = own.list_objects_v2(Bucket=BUCKET)["KeyCount"]
        parts = own.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
        own.close()
    finally:
        server.stop()
    assert (absent.status, absent.stops_jobs) == ("FAIL", True)
    assert "code NoSuchBucket" in absent.found
    assert "check DIGITAL_OCEAN_BUCKET_NAME" in absent.advice
    assert found.status == "OK"
    assert found.found == (f"bucket {BUCKET} in us-east-1: an object was written; read; its public URL works; deleted")
    assert accepted.status == "OK"
    assert (left, parts) == (0, [])


@pytest.mark.parametrize("check", [storage.check, storage.check_accepts])
@pytest.mark.parametrize(
    ("number", "code", "advice", "stops"),
    [
        (403, "SignatureDoesNotMatch", KEYS, True),
        (403, "InvalidAccessKeyId", KEYS, True),
        (404, "NoSuchBucket", "check DIGITAL_OCEAN_BUCKET_NAME", True),
        (400, "AccessControlListNotSupported", "allow object ACLs", True),
        (403, "RequestTimeTooSkewed", "", True),
        (503, "SlowDown", "send the job again later", False),
        (500, "InternalError", "send the job again later", False),
        (400, "RequestTimeout", "check DIGITAL_OCEAN_ENDPOINT_URL", False),
    ],
)
def test_a_storage_that_refuses_is_fatal_and_one_that_is_out_of_order_is_not(
    tmp_path: Path,
    bucket: s3_double.Double,
    check: Callable[[Any], Finding],
    number: int,
    code: str,
    advice: str,
    stops: bool,
) -> None:
    bucket.always.update(put=s3_double.status(number, code), create=s3_double.status(number, code))
    found = check(deployment(tmp_path))
    assert (found.status, found.stops_jobs) == ("FAIL", stops)
    assert f"status {number}, code {code}, request id tx-1" in found.found
    assert advice in found.advice
    assert "the-secret-key" not in found.found + found.advice


def test_a_storage_that_nobody_serves_is_a_failure_that_may_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(monkeypatch, NOWHERE)
    found = storage.check(deployment(tmp_path))
    assert (found.status, found.stops_jobs) == ("FAIL", False)
    assert "check DIGITAL_OCEAN_ENDPOINT_URL" in found.advice


def test_an_address_that_cannot_be_used_is_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, NOWHERE)
    monkeypatch.setenv("DIGITAL_OCEAN_BUCKET_NAME", "no/bucket")
    found = storage.check(deployment(tmp_path))
    assert (found.status, found.stops_jobs) == ("FAIL", True)
    assert found.found == "DIGITAL_OCEAN_BUCKET_NAME"


def test_what_the_key_may_not_do_besides_writing_is_a_warning(tmp_path: Path, bucket: s3_double.Double) -> None:
    def signed_only(handler: s3_double.Handler) -> bool:
        if "Authorization" not in handler.headers:
            return False
        handler.error(403, "AccessDenied")
        return True

    bucket.always.update(get=signed_only, delete=s3_double.status(403, "AccessDenied"))
    found = storage.check(deployment(tmp_path))
    assert found.status == "WARN"
    assert "it could not be read (status 403, code AccessDenied" in found.found
    assert "it could not be deleted (status 403" in found.found
    (left,) = bucket.objects
    assert f"delete {left.removeprefix(f'/{BUCKET}/')} yourself" in found.advice


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (say(403), "its public URL answers 403"),
        (say(301, Location="/elsewhere"), "its public URL answers 301"),
        (say(200, b"a parked domain"), "its public URL leads to something else"),
    ],
)
def test_a_public_url_that_does_not_lead_to_the_object_is_a_warning(
    tmp_path: Path,
    bucket: s3_double.Double,
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[[Any], None],
    found: str,
) -> None:
    with answering(answer) as cdn:
        monkeypatch.setenv("DIGITAL_OCEAN_BUCKET_URL", cdn)
        finding = storage.check(deployment(tmp_path))
    assert finding.status == "WARN"
    assert found in finding.found
    assert "check DIGITAL_OCEAN_BUCKET_URL" in finding.advice
    assert bucket.objects == {}


def test_a_public_url_that_nobody_serves_is_a_warning(
    tmp_path: Path, bucket: s3_double.Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIGITAL_OCEAN_BUCKET_URL", NOWHERE)
    assert "its public URL cannot be reached" in storage.check(deployment(tmp_path)).found


def test_signed_urls_are_used_and_never_shown(
    tmp_path: Path, bucket: s3_double.Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look(handler: s3_double.Handler) -> bool:
        seen.append(handler.path)
        if "X-Amz-Signature" in handler.path:
            handler.error(403, "AccessDenied")
            return True
        return False

    bucket.always["get"] = look
    monkeypatch.setenv("STORAGE_ACL", "private")
    found = storage.check(deployment(tmp_path))
    assert any("X-Amz-Signature" in path for path in seen)
    assert "its public URL answers 403" in found.found
    assert "Signature" not in found.found + found.advice


def test_an_object_that_comes_back_changed_is_a_failure(
    tmp_path: Path, bucket: s3_double.Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(handler: s3_double.Handler) -> bool:
        stored = bucket.objects[key_of(handler)]
        stored.body = stored.body.upper()
        return False

    bucket.always["get"] = change
    found = storage.check(deployment(tmp_path))
    assert found.status == "FAIL"
    assert "it came back changed" in found.found


def test_the_local_folder_is_left_as_it_was(tmp_path: Path) -> None:
    assert storage.check(deployment(tmp_path)).status == "OK"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("check", [storage.check, storage.check_accepts])
def test_the_local_folder_is_written_and_read_and_on_the_platform_a_warning(
    tmp_path: Path, check: Callable[[Any], Finding], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outputs").mkdir()
    assert check(deployment(tmp_path)).status == "OK"
    monkeypatch.setenv("RUNPOD_WEBHOOK_GET_JOB", "http://127.0.0.1:9/job-take/$ID")
    on_platform = check(deployment(tmp_path))
    assert on_platform.status == "WARN"
    assert "each travels in the answer of its job" in on_platform.found
    assert on_platform.advice == "set the four DIGITAL_OCEAN_* variables"
    assert list(tmp_path.rglob("*")) == [tmp_path / "outputs"]


@pytest.mark.parametrize("check", [storage.check, storage.check_accepts])
def test_a_local_folder_that_cannot_be_written_is_fatal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: Callable[[Any], Finding]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "file"))
    found = check(deployment(tmp_path))
    assert (found.status, found.stops_jobs) == ("FAIL", True)
    assert found.advice


def test_every_storage_has_its_probe() -> None:
    assert set(storage.PROBES) == set(STORAGES)


def test_an_upload_that_failed_for_no_known_reason_may_pass() -> None:
    assert not storage.refusal(UploadFailed("the storage was silent: check it")).stops_jobs


def test_storage_settings_that_cannot_be_read_are_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIGITAL_OCEAN_BUCKET_NAME", BUCKET)
    found = storage.check(deployment(tmp_path))
    assert found.status == "WARN"
    assert "fix what the line settings says" in found.advice
