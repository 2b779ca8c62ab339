"""What the Spaces storage sends, and what the server must hold afterwards: whole videos, or nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kits.delivery import KEY, MIB, make_video
from tests.kits.s3_double import BUCKET, Double, Handler, flip_a_byte, status
from worker.base.errors import UploadFailed
from worker.delivery.storage.base import Delivery
from worker.delivery.storage.spaces import SpacesStorage
from worker.delivery.storage.spaces_client import make_client
from worker.delivery.storage.spaces_place import place_of

Store = Callable[..., Delivery]


def test_requests_are_what_real_servers_take(double: Double, store: Store) -> None:
    store(b"small")
    store(b"L" * (2 * MIB + 1))
    assert double.operations() == ["put", "head", "create", "part", "part", "part", "complete", "head"]
    for operation, headers in double.seen:
        assert not [name for name in headers if name.startswith("x-amz-checksum") or name == "x-amz-trailer"]
        assert "x-amz-sdk-checksum-algorithm" not in headers
        assert "aws-chunked" not in headers.get("content-encoding", "")
        assert "STREAMING" not in headers["x-amz-content-sha256"]
        assert "transfer-encoding" not in headers
        assert headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=key/")
        assert "x-amz-security-token" not in headers
        assert ("content-md5" in headers) == (operation in ("put", "part"))
        assert headers.get("x-amz-acl") == ("public-read" if operation in ("put", "create") else None)
    assert double.only_object() == b"L" * (2 * MIB + 1)


def test_a_damaged_body_is_refused_by_the_server(double: Double, tmp_path: Path) -> None:
    # The body is damaged after it was signed and hashed, as a broken path would: only Content-MD5 can tell.
    place = place_of(double.endpoint_url, BUCKET)
    client = make_client(place, "key", "secret")

    def damage(request: Any, **_: Any) -> None:
        request.body = b"VIDEO bytes"

    client.meta.events.register("before-send.s3.PutObject", damage)
    with pytest.raises(UploadFailed, match="damaged on its way"):
        SpacesStorage(client, place).store(make_video(tmp_path), KEY)
    client.close()
    assert double.objects == {}


def test_a_wrong_size_afterwards_is_a_failure(double: Double, store: Store) -> None:
    def short(handler: Handler) -> bool:
        handler.answer(200, **{"Content-Length": "10", "x-amz-meta-sha256": hashlib.sha256(b"video bytes").hexdigest()})
        return True

    double.always["head"] = short
    with pytest.raises(UploadFailed, match="does not hold what was sent"):
        store()


@pytest.mark.parametrize("metadata", [{}, {"x-amz-meta-sha256": "0" * 64}])
def test_a_wrong_sha256_afterwards_is_a_failure(double: Double, store: Store, metadata: dict[str, str]) -> None:
    def other(handler: Handler) -> bool:
        handler.answer(200, **{"Content-Length": str(len(b"video bytes")), **metadata})
        return True

    double.always["head"] = other
    with pytest.raises(UploadFailed, match="does not hold what was sent"):
        store()


def test_the_poster_follows_the_video_and_cannot_lose_it(
    double: Double, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse_posters(handler: Handler) -> bool:
        if not handler.path.endswith(".jpg"):
            return False
        handler.error(403, "AccessDenied")
        return True

    double.always["put"] = refuse_posters
    delivery = store(poster=b"poster")
    assert delivery.thumbnail_url is None
    assert delivery.video_url.endswith(f"{KEY}.mp4")
    assert double.operations() == ["put", "head", "put"]
    assert f"the poster {KEY}.jpg was not stored" in caplog.text


def test_a_failed_video_leaves_no_poster(double: Double, store: Store) -> None:
    double.always["put"] = status(403, "AccessDenied")
    with pytest.raises(UploadFailed):
        store(poster=b"poster")
    assert double.operations() == ["put"]


@pytest.mark.parametrize("operation", ["part", "complete"])
def test_a_multipart_upload_that_cannot_end_is_aborted(double: Double, store: Store, operation: str) -> None:
    double.always[operation] = status(500, "InternalError")
    with pytest.raises(UploadFailed, match="send the job again"):
        store(b"v" * (MIB + 1), attempts=2)
    assert double.operations()[-1] == "abort"
    assert double.uploads == {}
    assert double.objects == {}


def test_a_failed_abort_does_not_hide_the_first_error(
    double: Double, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    double.always["part"] = status(403, "AccessDenied")
    double.always["abort"] = status(500, "InternalError")
    with pytest.raises(UploadFailed, match="DIGITAL_OCEAN_BUCKET_ACCESS_KEY"):
        store(b"v" * (MIB + 1), attempts=1)
    assert "may remain" in caplog.text


@pytest.mark.parametrize("operation", ["put", "part"])
def test_an_etag_of_other_bytes_is_an_upload_that_failed(double: Double, store: Store, operation: str) -> None:
    def other(handler: Handler) -> bool:
        handler.answer(200, ETag=f'"{"0" * 32}"')
        return True

    double.always.update({"put": flip_a_byte, "part": other})
    size_bytes = MIB + 1 if operation == "part" else 10
    with pytest.raises(UploadFailed, match="damaged on its way"):
        store(b"v" * size_bytes)


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": f'"{"0" * 32}-1"'},
        {"ETag": '"an-etag"'},
        {"ETag": f'"{"0" * 32}"', "x-amz-server-side-encryption": "aws:kms"},
        {"ETag": f'"{"0" * 32}"', "x-amz-server-side-encryption-customer-algorithm": "AES256"},
        {},
    ],
)
def test_an_etag_that_is_no_md5_says_nothing(double: Double, store: Store, headers: dict[str, str]) -> None:
    def answer(handler: Handler) -> bool:
        keep = handler.answer
        handler.answer = lambda status, body="", **own: keep(status, body, **{**own, "ETag": "", **headers})  # type: ignore[method-assign]
        return False

    double.always["put"] = answer
    store()
