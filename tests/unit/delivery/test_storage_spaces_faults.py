"""The Spaces storage against an S3 server that misbehaves (s3_double.py), with the real boto3 client."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from tests.kits.delivery import make_video
from tests.kits.loopback import takes_at_most, wait_until
from tests.kits.s3_double import (
    Double,
    Fault,
    Handler,
    drip,
    flip_a_byte,
    lose_the_answer,
    pause,
    reset,
    reset_half_way,
    say_nothing,
    serving,
    status,
)
from worker.base.errors import Cancelled, UploadFailed
from worker.base.stop import Deadline
from worker.delivery.storage.spaces import SpacesStorage
from worker.delivery.storage.spaces_client import make_client
from worker.delivery.storage.spaces_place import place_of

BUCKET = "videos-bucket"
KEY = "videos/2026-11-21/abc-123/0"
MIB = 1024 * 1024
PART_BYTES = 1 * MIB


@pytest.fixture
def double() -> Iterator[Double]:
    with serving() as running:
        yield running


@pytest.fixture
def open_double(double: Double) -> Iterator[Callable[..., SpacesStorage]]:
    clients = []

    def opened(attempts: int = 3, read_timeout_s: float = 20, **options: Any) -> SpacesStorage:
        place = place_of(double.endpoint_url, BUCKET)
        client = make_client(
            place, "key", "secret", total_max_attempts=attempts, connect_timeout_s=5, read_timeout_s=read_timeout_s
        )
        clients.append(client)
        return SpacesStorage(client, place, multipart_threshold_bytes=PART_BYTES, part_bytes=PART_BYTES, **options)

    yield opened
    for client in clients:
        client.close()


Opened = Callable[..., SpacesStorage]


def stored(double: Double, suffix: str = ".mp4") -> bytes:
    return double.objects[f"/{BUCKET}/{KEY}{suffix}"].body


def test_requests_are_what_real_servers_take(double: Double, open_double: Opened, tmp_path: Path) -> None:
    storage = open_double()
    storage.store(make_video(tmp_path, b"small", None), KEY)
    storage.store(make_video(tmp_path, b"L" * (2 * MIB + 1), None), KEY)
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
    assert stored(double) == b"L" * (2 * MIB + 1)


@pytest.mark.parametrize("fault", [status(503, "SlowDown"), status(500, "InternalError"), reset])
@pytest.mark.parametrize("operation", ["put", "head"])
def test_two_failures_are_retried(
    double: Double, open_double: Opened, tmp_path: Path, fault: Fault, operation: str
) -> None:
    double.faults[operation] = [fault, fault]
    open_double(attempts=3).store(make_video(tmp_path, poster=None), KEY)
    assert double.operations().count(operation) == 3
    assert stored(double) == b"video bytes"


def test_a_cut_in_the_middle_of_the_body_is_retried(double: Double, open_double: Opened, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096
    double.faults["put"] = [reset_half_way]
    open_double().store(make_video(tmp_path, content, None), KEY)
    assert double.operations() == ["put", "put", "head"]
    assert stored(double) == content


def test_a_slow_answer_is_retried(double: Double, open_double: Opened, tmp_path: Path) -> None:
    double.faults["put"] = [pause]
    open_double(read_timeout_s=1).store(make_video(tmp_path, poster=None), KEY)
    assert double.operations()[:2] == ["put", "put"]
    assert stored(double) == b"video bytes"


@pytest.mark.parametrize(
    "fault", [status(503, "SlowDown"), reset, reset_half_way], ids=["503", "reset", "reset half way"]
)
def test_failures_that_never_end_become_upload_failed(
    double: Double, open_double: Opened, tmp_path: Path, fault: Fault
) -> None:
    double.always["put"] = fault
    with pytest.raises(UploadFailed, match="send the job again") as caught:
        open_double(attempts=2).store(make_video(tmp_path, b"v" * MIB, None), KEY)
    assert double.operations() == ["put", "put"]  # as many attempts as configured, no more
    assert "127.0.0.1" not in str(caught.value)


def test_a_silent_server_becomes_upload_failed(double: Double, open_double: Opened, tmp_path: Path) -> None:
    double.always["put"] = pause
    with pytest.raises(UploadFailed, match="did not answer"):
        open_double(attempts=1, read_timeout_s=0.5).store(make_video(tmp_path, poster=None), KEY)


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        place = place_of(f"http://127.0.0.1:{taken.getsockname()[1]}", BUCKET)
        client = make_client(place, "key", "secret", total_max_attempts=2)
        with pytest.raises(UploadFailed, match="did not answer") as caught:
            SpacesStorage(client, place).store(make_video(tmp_path, poster=None), KEY)
        client.close()
    assert "127.0.0.1" not in str(caught.value)


def test_403_is_not_retried_and_names_the_keys(
    double: Double, open_double: Opened, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    double.always["put"] = status(403, "AccessDenied")
    with pytest.raises(UploadFailed, match="DIGITAL_OCEAN_BUCKET_ACCESS_KEY"):
        open_double().store(make_video(tmp_path, poster=None), KEY)
    assert double.operations() == ["put"]
    assert "code AccessDenied, request id tx-1" in caplog.text


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


def test_a_wrong_size_afterwards_is_a_failure(double: Double, open_double: Opened, tmp_path: Path) -> None:
    video = make_video(tmp_path, poster=None)

    def short(handler: Handler) -> bool:
        handler.answer(200, **{"Content-Length": "10", "x-amz-meta-sha256": video.sha256})
        return True

    double.always["head"] = short
    with pytest.raises(UploadFailed, match="does not hold what was sent"):
        open_double().store(video, KEY)


@pytest.mark.parametrize("metadata", [{}, {"x-amz-meta-sha256": "0" * 64}])
def test_a_wrong_sha256_afterwards_is_a_failure(
    double: Double, open_double: Opened, tmp_path: Path, metadata: dict[str, str]
) -> None:
    video = make_video(tmp_path, poster=None)

    def other(handler: Handler) -> bool:
        handler.answer(200, **{"Content-Length": str(video.size_bytes), **metadata})
        return True

    double.always["head"] = other
    with pytest.raises(UploadFailed, match="does not hold what was sent"):
        open_double().store(video, KEY)


def test_the_poster_follows_the_video_and_cannot_lose_it(
    double: Double, open_double: Opened, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse_posters(handler: Handler) -> bool:
        if not handler.path.endswith(".jpg"):
            return False
        handler.error(403, "AccessDenied")
        return True

    double.always["put"] = refuse_posters
    delivery = open_double().store(make_video(tmp_path, poster=b"poster"), KEY)
    assert delivery.thumbnail_url is None
    assert delivery.video_url.endswith(f"{KEY}.mp4")
    assert double.operations() == ["put", "head", "put"]
    assert f"the poster {KEY}.jpg was not stored" in caplog.text


def test_a_failed_video_leaves_no_poster(double: Double, open_double: Opened, tmp_path: Path) -> None:
    double.always["put"] = status(403, "AccessDenied")
    with pytest.raises(UploadFailed):
        open_double().store(make_video(tmp_path, poster=b"poster"), KEY)
    assert double.operations() == ["put"]


def test_a_part_that_fails_twice_is_retried_alone(double: Double, open_double: Opened, tmp_path: Path) -> None:
    double.faults["part"] = [lambda _handler: False, reset_half_way, status(503, "SlowDown")]
    content = b"a" * MIB + b"b" * MIB
    open_double(attempts=3).store(make_video(tmp_path, content, None), KEY)
    assert double.operations() == ["create", "part", "part", "part", "part", "complete", "head"]
    assert stored(double) == content


@pytest.mark.parametrize("operation", ["part", "complete"])
def test_a_multipart_upload_that_cannot_end_is_aborted(
    double: Double, open_double: Opened, tmp_path: Path, operation: str
) -> None:
    double.always[operation] = status(500, "InternalError")
    with pytest.raises(UploadFailed, match="send the job again"):
        open_double(attempts=2).store(make_video(tmp_path, b"v" * (MIB + 1), None), KEY)
    assert double.operations()[-1] == "abort"
    assert double.uploads == {}
    assert double.objects == {}


def test_a_failed_abort_does_not_hide_the_first_error(
    double: Double, open_double: Opened, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    double.always["part"] = status(403, "AccessDenied")
    double.always["abort"] = status(500, "InternalError")
    with pytest.raises(UploadFailed, match="DIGITAL_OCEAN_BUCKET_ACCESS_KEY"):
        open_double(attempts=1).store(make_video(tmp_path, b"v" * (MIB + 1), None), KEY)
    assert "may remain" in caplog.text


def test_a_lost_answer_to_complete_is_not_a_failure(double: Double, open_double: Opened, tmp_path: Path) -> None:
    double.faults["complete"] = [lose_the_answer]
    content = b"v" * (MIB + 1)
    open_double(attempts=2).store(make_video(tmp_path, content, None), KEY)
    assert double.operations()[-3:] == ["complete", "complete", "head"]
    assert stored(double) == content


@pytest.mark.parametrize(
    ("body", "remedy"),
    [
        ("<html>hello</html>", "DIGITAL_OCEAN_ENDPOINT_URL"),
        ("", "DIGITAL_OCEAN_ENDPOINT_URL"),
        ("not xml at all", "later"),  # botocore takes it for a success that broke off, which S3 does send
    ],
)
def test_a_server_that_is_not_s3(double: Double, open_double: Opened, tmp_path: Path, body: str, remedy: str) -> None:
    def answer(handler: Handler) -> bool:
        handler.answer(200, body)
        return True

    double.always["create"] = answer
    with pytest.raises(UploadFailed, match=remedy):
        open_double(attempts=1).store(make_video(tmp_path, b"v" * (MIB + 1), None), KEY)
    assert double.operations() == ["create"]


def test_a_server_that_redirects_for_ever_is_an_upload_that_failed(
    double: Double, open_double: Opened, tmp_path: Path
) -> None:
    """Botocore follows it until Python's stack is used up."""
    double.always.update(put=status(307, "TemporaryRedirect"), head=status(307, "TemporaryRedirect"))
    with pytest.raises(UploadFailed, match="region"):
        open_double(attempts=1).store(make_video(tmp_path, poster=None), KEY)


# --- the wall clock around an upload


def open_connections(double: Double) -> int:
    port = urlsplit(double.endpoint_url).port
    return sum(
        1
        for found in psutil.Process().net_connections("tcp")
        if found.raddr and found.raddr.port == port and found.status == psutil.CONN_ESTABLISHED
    )


@pytest.mark.parametrize("fault", [say_nothing, drip])
@pytest.mark.parametrize("operation", ["put", "head", "part"])
def test_an_upload_ends_with_its_wall_clock_and_its_connection_is_shut(
    double: Double, open_double: Opened, tmp_path: Path, fault: Fault, operation: str
) -> None:
    double.always[operation] = fault
    size_bytes = PART_BYTES + 1 if operation == "part" else 10
    with takes_at_most(8), pytest.raises(UploadFailed, match="too long"):
        open_double(least_upload_s=0.5).store(make_video(tmp_path, b"v" * size_bytes, None), KEY)
    wait_until(lambda: open_connections(double) == 0 and double.uploads == {})
    assert double.operations().count(operation) == 1


@pytest.mark.parametrize("fault", [say_nothing, drip, status(503, "SlowDown")])
@pytest.mark.parametrize("work", ["store", "store_beside", "holds", "read"])
def test_a_stop_ends_what_the_storage_holds_up(
    double: Double, open_double: Opened, tmp_path: Path, fault: Fault, work: str
) -> None:
    """503 has boto3 sleep between its attempts."""
    double.always.update(put=fault, head=fault, get=fault)
    storage, video, stop = open_double(attempts=9), make_video(tmp_path), Deadline.after(0.4)
    asked: dict[str, Callable[[], object]] = {
        "store": lambda: storage.store(video, KEY, stop=stop),
        "store_beside": lambda: storage.store_beside(video, KEY, stop=stop),
        "holds": lambda: storage.holds(f"{KEY}.mp4", sha256=video.sha256, stop=stop),
        "read": lambda: storage.read(f"{KEY}.mp4", stop=stop),
    }
    with takes_at_most(3), pytest.raises(Cancelled):
        asked[work]()


# --- what the server says that it holds


@pytest.mark.parametrize("operation", ["put", "part"])
def test_an_etag_of_other_bytes_is_an_upload_that_failed(
    double: Double, open_double: Opened, tmp_path: Path, operation: str
) -> None:
    def other(handler: Handler) -> bool:
        handler.answer(200, ETag=f'"{"0" * 32}"')
        return True

    double.always.update({"put": flip_a_byte, "part": other})
    size_bytes = PART_BYTES + 1 if operation == "part" else 10
    with pytest.raises(UploadFailed, match="damaged on its way"):
        open_double().store(make_video(tmp_path, b"v" * size_bytes, None), KEY)


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
def test_an_etag_that_is_no_md5_says_nothing(
    double: Double, open_double: Opened, tmp_path: Path, headers: dict[str, str]
) -> None:
    def answer(handler: Handler) -> bool:
        keep = handler.answer
        handler.answer = lambda status, body="", **own: keep(status, body, **{**own, "ETag": "", **headers})  # type: ignore[method-assign]
        return False

    double.always["put"] = answer
    open_double().store(make_video(tmp_path, poster=None), KEY)
