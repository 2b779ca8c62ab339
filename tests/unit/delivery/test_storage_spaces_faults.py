"""The Spaces storage against an S3 server that fails, is silent or slow (s3_double.py), with the real boto3 client."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.kits.delivery import KEY, MIB, make_video
from tests.kits.loopback import takes_at_most, wait_until
from tests.kits.s3_double import (
    BUCKET,
    Double,
    Fault,
    Handler,
    drip,
    lose_the_answer,
    pause,
    reset,
    reset_half_way,
    say_nothing,
    status,
)
from worker.base.errors import Cancelled, UploadFailed
from worker.base.stop import Deadline
from worker.delivery.storage.base import Delivery
from worker.delivery.storage.spaces import SpacesStorage
from worker.delivery.storage.spaces_client import make_client
from worker.delivery.storage.spaces_place import place_of

Store = Callable[..., Delivery]


@pytest.mark.parametrize("fault", [status(503, "SlowDown"), status(500, "InternalError"), reset])
@pytest.mark.parametrize("operation", ["put", "head"])
def test_two_failures_are_retried(double: Double, store: Store, fault: Fault, operation: str) -> None:
    double.faults[operation] = [fault, fault]
    store(attempts=3)
    assert double.operations().count(operation) == 3
    assert double.only_object() == b"video bytes"


def test_a_cut_in_the_middle_of_the_body_is_retried(double: Double, store: Store) -> None:
    content = bytes(range(256)) * 4096
    double.faults["put"] = [reset_half_way]
    store(content)
    assert double.operations() == ["put", "put", "head"]
    assert double.only_object() == content


def test_a_slow_answer_is_retried(double: Double, store: Store) -> None:
    double.faults["put"] = [pause]
    store(read_timeout_s=1)
    assert double.operations()[:2] == ["put", "put"]
    assert double.only_object() == b"video bytes"


@pytest.mark.parametrize(
    "fault", [status(503, "SlowDown"), reset, reset_half_way], ids=["503", "reset", "reset half way"]
)
def test_failures_that_never_end_become_upload_failed(double: Double, store: Store, fault: Fault) -> None:
    double.always["put"] = fault
    with pytest.raises(UploadFailed, match="send the job again") as caught:
        store(b"v" * MIB, attempts=2)
    assert double.operations() == ["put", "put"]  # as many attempts as configured, no more
    assert "127.0.0.1" not in str(caught.value)


def test_a_silent_server_becomes_upload_failed(double: Double, store: Store) -> None:
    double.always["put"] = pause
    with pytest.raises(UploadFailed, match="did not answer"):
        store(attempts=1, read_timeout_s=0.5)


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        place = place_of(f"http://127.0.0.1:{taken.getsockname()[1]}", BUCKET)
        client = make_client(place, "key", "secret", total_max_attempts=2)
        with pytest.raises(UploadFailed, match="did not answer") as caught:
            SpacesStorage(client, place).store(make_video(tmp_path, poster=None), KEY)
        client.close()
    assert "127.0.0.1" not in str(caught.value)


def test_403_is_not_retried_and_names_the_keys(double: Double, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    double.always["put"] = status(403, "AccessDenied")
    with pytest.raises(UploadFailed, match="DIGITAL_OCEAN_BUCKET_ACCESS_KEY"):
        store()
    assert double.operations() == ["put"]
    assert "code AccessDenied, request id tx-1" in caplog.text


def test_a_part_that_fails_twice_is_retried_alone(double: Double, store: Store) -> None:
    double.faults["part"] = [lambda _handler: False, reset_half_way, status(503, "SlowDown")]
    content = b"a" * MIB + b"b" * MIB
    store(content, attempts=3)
    assert double.operations() == ["create", "part", "part", "part", "part", "complete", "head"]
    assert double.only_object() == content


def test_a_lost_answer_to_complete_is_not_a_failure(double: Double, store: Store) -> None:
    double.faults["complete"] = [lose_the_answer]
    content = b"v" * (MIB + 1)
    store(content, attempts=2)
    assert double.operations()[-3:] == ["complete", "complete", "head"]
    assert double.only_object() == content


@pytest.mark.parametrize(
    ("body", "remedy"),
    [
        ("<html>hello</html>", "DIGITAL_OCEAN_ENDPOINT_URL"),
        ("", "DIGITAL_OCEAN_ENDPOINT_URL"),
        ("not xml at all", "later"),  # botocore takes it for a success that broke off, which S3 does send
    ],
)
def test_a_server_that_is_not_s3(double: Double, store: Store, body: str, remedy: str) -> None:
    def answer(handler: Handler) -> bool:
        handler.answer(200, body)
        return True

    double.always["create"] = answer
    with pytest.raises(UploadFailed, match=remedy):
        store(b"v" * (MIB + 1), attempts=1)
    assert double.operations() == ["create"]


def test_a_server_that_redirects_for_ever_is_an_upload_that_failed(double: Double, store: Store) -> None:
    """Botocore follows it until Python's stack is used up."""
    double.always.update(put=status(307, "TemporaryRedirect"), head=status(307, "TemporaryRedirect"))
    with pytest.raises(UploadFailed, match="region"):
        store(attempts=1)


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
    double: Double, store: Store, fault: Fault, operation: str
) -> None:
    double.always[operation] = fault
    size_bytes = MIB + 1 if operation == "part" else 10
    with takes_at_most(8), pytest.raises(UploadFailed, match="too long"):
        store(b"v" * size_bytes, least_upload_s=0.5)
    wait_until(lambda: open_connections(double) == 0 and double.uploads == {})
    assert double.operations().count(operation) == 1


@pytest.mark.parametrize("fault", [say_nothing, drip, status(503, "SlowDown")])
@pytest.mark.parametrize("work", ["store", "store_beside", "holds", "read"])
def test_a_stop_ends_what_the_storage_holds_up(
    double: Double, open_double: Callable[..., SpacesStorage], tmp_path: Path, fault: Fault, work: str
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
