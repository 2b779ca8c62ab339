"""The boundary to boto3: nothing that it can raise leaves the storage as anything but UploadFailed."""

from __future__ import annotations

import functools
import hashlib
import inspect
import string
from pathlib import Path
from typing import TYPE_CHECKING

import boto3.exceptions
import botocore.exceptions
import botocore.parsers
import pytest
import urllib3.exceptions

from worker.base.errors import UploadFailed
from worker.delivery.storage.spaces import SpacesStorage
from worker.delivery.storage.spaces_client import make_client
from worker.delivery.storage.spaces_errors import STORAGE_FAILURES
from worker.delivery.storage.spaces_place import Place, place_of
from worker.media import VideoFile

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

HOST = "storage.internal.example.com"


class _Anything(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return f"https://{HOST}/x?X-Amz-Signature=word"


def _instance(kind: type[Exception]) -> Exception:
    """An exception as botocore would build it, its text full of what must not leave the worker."""
    if issubclass(kind, botocore.exceptions.ClientError):
        return kind({"Error": {"Code": "Weird", "Message": HOST}, "ResponseMetadata": {"HTTPStatusCode": 418}}, "Put")
    text = getattr(kind, "fmt", "")
    fields = {name for _, name, _, _ in string.Formatter().parse(text) if name}
    names = {field.split(".")[0].split("[")[0] for field in fields}
    if issubclass(kind, botocore.exceptions.BotoCoreError):
        return kind(**{name: _Anything()[name] for name in names})
    return kind(HOST)


def _kinds() -> list[type[Exception]]:
    known = [kind for _, kind in inspect.getmembers(botocore.exceptions, inspect.isclass)]
    roots = (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)
    found = [kind for kind in known if issubclass(kind, roots)]
    found += [kind for _, kind in inspect.getmembers(boto3.exceptions, inspect.isclass)]
    found += [botocore.parsers.ResponseParserError, urllib3.exceptions.HTTPError, OSError, ConnectionResetError]
    found.append(RecursionError)
    return [kind for kind in dict.fromkeys(found) if not issubclass(kind, Warning)]


@functools.cache
def _place_and_client() -> tuple[Place, S3Client]:
    place = place_of(f"https://{HOST}", "videos")
    return place, make_client(place, "key", "secret", total_max_attempts=1)


def _failing_storage(raised: BaseException) -> SpacesStorage:
    """A storage whose client raises `raised` where it would send a put."""

    def fail(**_: object) -> None:
        raise raised

    place, client = _place_and_client()
    event = "before-call.s3.PutObject"
    client.meta.events.unregister(event, unique_id="fail")
    client.meta.events.register(event, fail, unique_id="fail")
    return SpacesStorage(client, place)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> VideoFile:
    path = tmp_path_factory.mktemp("video") / "encoded.mp4"
    path.write_bytes(b"video")
    return VideoFile(path, None, 64, 64, 9, 16, 5, hashlib.sha256(b"video").hexdigest())


def test_every_exception_of_boto3_is_mapped(video: VideoFile, caplog: pytest.LogCaptureFixture) -> None:
    kinds = _kinds()
    assert len(kinds) > 80  # the walk itself must not come to nothing
    built = 0
    for kind in kinds:
        try:
            raised = _instance(kind)
        except (TypeError, KeyError, AttributeError, IndexError, ValueError):
            continue  # a signature of its own; its base class is mapped, which the next test shows
        built += 1
        with pytest.raises(UploadFailed) as caught:
            _failing_storage(raised).store(video, "key")
        assert caught.value.__cause__ is raised
        assert HOST not in str(caught.value), kind
        assert "X-Amz" not in str(caught.value), kind
    assert built > len(kinds) * 0.9
    assert HOST not in caplog.text
    assert "X-Amz" not in caplog.text


@pytest.mark.parametrize("kind", _kinds())
def test_every_kind_has_a_base_that_the_boundary_catches(kind: type[Exception]) -> None:
    assert issubclass(kind, STORAGE_FAILURES)


@pytest.mark.parametrize(
    ("code", "status", "named"),
    [
        ("AccessDenied", 403, "DIGITAL_OCEAN_BUCKET_ACCESS_KEY"),
        ("SignatureDoesNotMatch", 403, "DIGITAL_OCEAN_BUCKET_SECRET_KEY"),
        ("403", 403, "STORAGE_ACL"),
        ("RequestTimeTooSkewed", 403, "clock"),
        ("QuotaExceeded", 403, "quota"),
        ("NoSuchBucket", 404, "DIGITAL_OCEAN_BUCKET_NAME"),
        ("PermanentRedirect", 301, "DIGITAL_OCEAN_REGION"),
        ("AuthorizationHeaderMalformed", 400, "DIGITAL_OCEAN_REGION"),
        ("AccessControlListNotSupported", 400, "ACL"),
        ("BadDigest", 400, "damaged"),
        ("SlowDown", 503, "later"),
        ("InternalError", 500, "later"),
        ("InternalError", 599, "later"),
        ("Strange", 499, "DIGITAL_OCEAN_"),
        ("TooManyRequests", 429, "later"),
        ("InsufficientStorage", 507, "space"),
    ],
)
def test_answers_name_what_to_check(video: VideoFile, code: str, status: int, named: str) -> None:
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status, "RequestId": "tx-1"}}
    with pytest.raises(UploadFailed, match=named):
        _failing_storage(botocore.exceptions.ClientError(answer, "PutObject")).store(video, "key")


def test_the_log_names_code_and_request_id_but_no_free_text(video: VideoFile, caplog: pytest.LogCaptureFixture) -> None:
    for code, request_id in (("AccessDenied", "tx0001-nyc3a"), ("Bad\nforged line", "a b")):
        answer = {
            "Error": {"Code": code, "Message": "free text"},
            "ResponseMetadata": {"HTTPStatusCode": 403, "RequestId": request_id},
        }
        with pytest.raises(UploadFailed):
            _failing_storage(botocore.exceptions.ClientError(answer, "PutObject")).store(video, "key")
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "the upload of key.mp4 failed: status 403, code AccessDenied, request id tx0001-nyc3a",
        "the upload of key.mp4 failed: status 403, code unknown, request id unknown",
    ]


def test_tls_and_silence_are_told_apart(video: VideoFile) -> None:
    tls = botocore.exceptions.SSLError(endpoint_url=f"https://{HOST}", error="certificate verify failed")
    with pytest.raises(UploadFailed, match="certificate"):
        _failing_storage(tls).store(video, "key")
    silent = botocore.exceptions.ReadTimeoutError(endpoint_url=f"https://{HOST}")
    with pytest.raises(UploadFailed, match="did not answer"):
        _failing_storage(silent).store(video, "key")


def test_a_lost_video_is_an_upload_that_failed(tmp_path: Path) -> None:
    lost = VideoFile(tmp_path / "gone.mp4", None, 64, 64, 9, 16, 5, "0" * 64)
    with pytest.raises(UploadFailed, match="could not be read") as caught:
        _failing_storage(AssertionError("nothing may be sent")).store(lost, "key")
    assert str(tmp_path) not in str(caught.value)


def test_foreign_exceptions_are_not_hidden(video: VideoFile) -> None:
    with pytest.raises(ZeroDivisionError):
        _failing_storage(ZeroDivisionError()).store(video, "key")
