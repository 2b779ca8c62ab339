"""A presigned address of the caller's, with the real opener and servers on loopback."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.kits.delivery import KEY, make_video
from tests.kits.loopback import Serve, Server, answering, response, takes_at_most
from worker.base.errors import Cancelled, InputBlocked, UploadFailed
from worker.base.stop import Deadline
from worker.delivery.storage.base import Delivery, Files
from worker.delivery.storage.local import LocalStorage
from worker.delivery.storage.presigned import PresignedStorage
from worker.net import Opener
from worker.request.payload import OutputFormat

QUERY = "X-Amz-Signature=5ec4e7&X-Amz-Expires=60"
FIELD = "job_request_params[2].upload_url"
OK = response()


def storage_at(server: Server, **options: Any) -> PresignedStorage:
    known: dict[str, Any] = {"opener": Opener(["127.0.0.1"]), "beside": None, "waits_s": (0.01, 0.01), **options}
    return PresignedStorage(server.url(f"/theirs/clip.mp4?{QUERY}"), path=FIELD, **known)


@contextmanager
def serving(*answers: bytes) -> Iterator[Server]:
    """Each answer once, the last one again and again."""
    left = list(answers)

    def serve(connection: Any, _request: bytes) -> None:
        connection.sendall(left.pop(0) if len(left) > 1 else left[0])

    with Server(serve) as server:
        yield server


@pytest.mark.parametrize(("name", "content_type"), [("mp4", "video/mp4"), ("gif", "image/gif")])
def test_the_video_is_put_there_as_it_is(tmp_path: Path, name: OutputFormat, content_type: str) -> None:
    content = bytes(range(256)) * 4000
    with serving(OK) as server:
        storage = storage_at(server)
        delivery = storage.store(make_video(tmp_path, content, output_format=name), KEY)
        (request,) = server.requests
        assert delivery == Delivery(server.url("/theirs/clip.mp4"), None)
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(f"PUT /theirs/clip.mp4?{QUERY} HTTP/1.1\r\n".encode())
    fields = dict(re.findall(r"(?m)^([^:\r\n]+): (.*?)\r?$", head.decode().lower()))
    assert (fields["content-type"], fields["content-length"]) == (content_type, str(len(content)))
    assert "transfer-encoding" not in fields
    assert body == content


def test_what_stands_beside_it_goes_to_the_workers_own_bucket(tmp_path: Path) -> None:
    own = LocalStorage(tmp_path / "out")
    with serving(OK) as server:
        storage = storage_at(server, beside=own)
        delivery = storage.store(make_video(tmp_path / "job", frames=b"a zip"), KEY)
        links = storage.links(KEY, Files(".mp4", poster=True, frames=True))
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.*")) == ["0.jpg", "0.zip"]
    assert delivery == links
    assert (str(delivery.thumbnail_url)[-6:], str(delivery.frames_url)[-6:]) == ("/0.jpg", "/0.zip")


PASSING = [response(status=f"{number} Soon") for number in (500, 503, 408, 429)]


@pytest.mark.parametrize("first", [*PASSING, b"", b"not http at all\r\n\r\n"])
def test_what_may_pass_is_tried_again(tmp_path: Path, first: bytes) -> None:
    with serving(first, first, OK) as server:
        storage_at(server).store(make_video(tmp_path), KEY)
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("answer", "says", "attempts"),
    [
        (response(status="403 Forbidden"), r"HTTP status 403: the URL has expired, or refuses a PUT of video/mp4", 1),
        (response(status="400 Bad Request"), "HTTP status 400: the URL has expired", 1),
        (response(status="307 Elsewhere", headers="Location: http://127.0.0.1:9/"), "a redirect is not followed", 1),
        (response(status="503 Slow Down"), "HTTP status 503: send the job again", 3),
        (b"", "send the job again", 3),
    ],
)
def test_a_refusal_names_the_field_and_no_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, answer: bytes, says: str, attempts: int
) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(answer) as server, pytest.raises(UploadFailed, match=says) as caught:
        storage_at(server).store(make_video(tmp_path), KEY)
    assert len(server.requests) == attempts
    assert caught.value.path == FIELD
    for text in (str(caught.value), caplog.text):
        assert "5ec4e7" not in text
        assert "127.0.0.1" not in text


def test_a_store_that_answers_before_it_has_read_the_video_is_heard(tmp_path: Path) -> None:
    def refuse(connection: Any, _request: bytes) -> None:
        raise AssertionError("the body was awaited")

    class Early(Server):
        def _talk(self, connection: Any) -> None:
            with connection:
                connection.recv(1000)
                connection.sendall(response(status="403 Forbidden"))
                connection.shutdown(1)
                while connection.recv(65_536):
                    pass

    with Early(refuse) as server, pytest.raises(UploadFailed, match="status 403"):
        storage_at(server).store(make_video(tmp_path, bytes(3_000_000)), KEY)


@pytest.mark.parametrize("etag", ["0" * 32, None])
def test_an_etag_of_other_bytes_is_an_upload_that_failed(tmp_path: Path, etag: str | None) -> None:
    video = make_video(tmp_path)
    told = etag or hashlib.md5(video.path.read_bytes()).hexdigest()
    with serving(response(headers=f'ETag: "{told}"')) as server:
        if etag is None:
            storage_at(server).store(video, KEY)
        else:
            with pytest.raises(UploadFailed, match="damaged on its way"):
                storage_at(server).store(video, KEY)


def test_a_private_address_gets_nothing(tmp_path: Path) -> None:
    with serving(OK) as server:
        with pytest.raises(InputBlocked) as caught:
            storage_at(server, opener=Opener([])).store(make_video(tmp_path), KEY)
        assert server.requests == []
    assert caught.value.path == FIELD


@pytest.mark.parametrize("answer", ["silence", "503"])
def test_a_stop_ends_it(tmp_path: Path, answer: str) -> None:
    silent: Serve = lambda connection, _: connection.recv(1)  # noqa: E731
    serve = silent if answer == "silence" else answering(response(status="503 Slow Down"))
    with Server(serve) as server, takes_at_most(3), pytest.raises(Cancelled):
        storage_at(server, waits_s=(60.0,)).store(make_video(tmp_path), KEY, stop=Deadline.after(0.3))


def test_a_lost_or_damaged_file_is_not_sent(tmp_path: Path) -> None:
    with serving(OK) as server:
        for damage in (lambda path: path.write_bytes(b"VIDEO BYTES"), Path.unlink):
            video = make_video(tmp_path)
            damage(video.path)
            with pytest.raises(UploadFailed) as caught:
                storage_at(server).store(video, KEY)
            assert str(tmp_path) not in str(caught.value)
        assert server.requests == []


def test_what_was_put_counts_as_stored_and_cannot_be_read(tmp_path: Path) -> None:
    with serving(OK) as server:
        storage = storage_at(server)
        assert storage.holds(f"{KEY}.mp4", sha256="0" * 64)
        with pytest.raises(UploadFailed):
            storage.read(f"{KEY}.mp4")
        assert server.requests == []
        assert "127" not in storage.describe()
