"""What is asked of a storage long after the upload: is the video still there, and what are its URLs now."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.kits.s3_double import Double, Fault, Handler, reset, serving, status
from worker.base.errors import UploadFailed
from worker.base.settings import Settings
from worker.delivery.storage import Storage, open_storage
from worker.delivery.storage.local import LocalStorage
from worker.delivery.storage.spaces import ASKING_ATTEMPTS, SpacesStorage
from worker.delivery.storage.spaces_client import TOTAL_MAX_ATTEMPTS, make_client
from worker.delivery.storage.spaces_place import place_of
from worker.media import VideoFile

BUCKET = "videos-bucket"
KEY = "videos/2026-11-21/abc-123/0"
PART_BYTES = 1000
EVERYTHING = ("put", "head", "create", "part", "complete", "abort")


def make_video(folder: Path, content: bytes = b"video bytes", poster: bytes | None = b"poster bytes") -> VideoFile:
    path, poster_path = folder / "encoded.mp4", folder / "encoded.jpg"
    path.write_bytes(content)
    if poster is not None:
        poster_path.write_bytes(poster)
    digest = hashlib.sha256(content).hexdigest()
    return VideoFile(path, poster_path if poster is not None else None, 64, 64, 9, 16, len(content), digest)


@pytest.fixture
def double() -> Iterator[Double]:
    with serving() as running:
        yield running


Opened = Callable[..., SpacesStorage]


@pytest.fixture
def spaces(double: Double) -> Iterator[Opened]:
    clients = []

    def opened(acl: Literal["public-read", "private"] = "public-read", expiry_s: int = 100) -> SpacesStorage:
        place = place_of(double.endpoint_url, BUCKET)
        clients.append(make_client(place, "key", "secret", total_max_attempts=2))
        return SpacesStorage(
            clients[-1],
            place,
            acl=acl,
            presign_expiry_s=expiry_s,
            multipart_threshold_bytes=PART_BYTES,
            part_bytes=PART_BYTES,
        )

    yield opened
    for client in clients:
        client.close()


def dead(double: Double, fault: Fault = reset) -> None:
    double.always.update(dict.fromkeys(EVERYTHING, fault))


@pytest.fixture(params=["folder", "spaces"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, spaces: Opened) -> Storage:
    return LocalStorage(tmp_path / "out") if request.param == "folder" else spaces()


def test_a_stored_video_is_held_under_its_own_digest_only(storage: Storage, tmp_path: Path) -> None:
    video = make_video(tmp_path)
    assert not storage.holds(KEY, sha256=video.sha256)
    storage.store(video, KEY)
    assert storage.holds(KEY, sha256=video.sha256)
    assert not storage.holds(KEY, sha256="0" * 64)
    assert not storage.holds(KEY.replace("/0", "/1"), sha256=video.sha256)


@pytest.mark.parametrize("poster", [b"poster bytes", None], ids=["poster", "no poster"])
def test_public_links_are_those_of_the_upload(storage: Storage, tmp_path: Path, poster: bytes | None) -> None:
    delivery = storage.store(make_video(tmp_path, poster=poster), KEY)
    assert storage.links(KEY, poster=poster is not None) == delivery


# --- the folder


def test_a_file_that_was_deleted_or_changed_is_not_held(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "out")
    video = make_video(tmp_path)
    storage.store(video, KEY)
    path = tmp_path / "out" / f"{KEY}.mp4"
    path.write_bytes(b"VIDEO BYTES")
    assert not storage.holds(KEY, sha256=video.sha256)
    path.unlink()
    assert not storage.holds(KEY, sha256=video.sha256)


def test_a_folder_that_cannot_be_read_cannot_be_asked(tmp_path: Path) -> None:
    (tmp_path / "out" / f"{KEY}.mp4").mkdir(parents=True)
    with pytest.raises(UploadFailed, match="OUTPUT_DIR") as caught:
        LocalStorage(tmp_path / "out").holds(KEY, sha256="0" * 64)
    assert str(tmp_path) not in str(caught.value)


# --- Spaces


def test_one_question_is_one_request_and_links_are_none(double: Double, spaces: Opened, tmp_path: Path) -> None:
    storage = spaces("private")
    video = make_video(tmp_path)
    storage.store(video, KEY)
    double.seen.clear()
    storage.links(KEY, poster=True)
    assert double.operations() == []
    storage.holds(KEY, sha256=video.sha256)
    assert double.operations() == ["head"]


def test_private_links_are_signed_anew(double: Double, spaces: Opened) -> None:
    delivery = spaces("private", 77).links(KEY, poster=True)
    assert delivery.thumbnail_url is not None
    for url, suffix in ((delivery.video_url, ".mp4"), (delivery.thumbnail_url, ".jpg")):
        assert url.startswith(f"{double.endpoint_url}/{BUCKET}/{KEY}{suffix}?")
        query = parse_qs(urlsplit(url).query)
        assert query["X-Amz-Expires"] == ["77"]
        assert query["X-Amz-Signature"]
    assert spaces("private").links(KEY, poster=False).thumbnail_url is None


def test_an_object_without_a_digest_counts_as_the_video(double: Double, spaces: Opened) -> None:
    def bare(handler: Handler) -> bool:  # as a copy made by other tools
        handler.answer(200, **{"Content-Length": "10"})
        return True

    double.always["head"] = bare
    assert spaces().holds(KEY, sha256="0" * 64)


@pytest.mark.parametrize("fault", [reset, status(503, "SlowDown"), status(403, "AccessDenied")])
def test_a_storage_that_does_not_answer_the_question_says_so(double: Double, spaces: Opened, fault: Fault) -> None:
    dead(double, fault)
    with pytest.raises(UploadFailed) as caught:
        spaces().holds(KEY, sha256="0" * 64)
    assert "127.0.0.1" not in str(caught.value)


def test_a_job_does_not_wait_long_for_the_answer(double: Double) -> None:
    storage = open_storage(
        Settings(
            storage_endpoint_url=double.endpoint_url,
            storage_access_key="access-key-value",
            storage_secret_key="secret-key-value",
            storage_bucket=BUCKET,
        )
    )
    dead(double)
    with pytest.raises(UploadFailed):
        storage.holds(KEY, sha256="0" * 64)
    assert double.operations() == ["head"] * ASKING_ATTEMPTS
    config: Any = storage._asking.meta.config  # type: ignore[attr-defined]
    assert (config.connect_timeout, config.read_timeout) == (5.0, 5.0)


# --- after an outage


def test_an_outage_does_not_use_up_the_retries_of_later_uploads(
    double: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda _seconds: None, time=time.time))
    settings = Settings(
        storage_endpoint_url=double.endpoint_url,
        storage_access_key="access-key-value",
        storage_secret_key="secret-key-value",
        storage_bucket=BUCKET,
    )
    storage = open_storage(settings)
    video = make_video(tmp_path, poster=None)
    dead(double, status(503, "ServiceUnavailable"))
    for _ in range(12):
        with pytest.raises(UploadFailed):
            storage.store(video, KEY)
    assert double.operations() == ["put"] * 12 * TOTAL_MAX_ATTEMPTS
    double.always.clear()
    double.seen.clear()
    double.faults["put"] = [status(503, "ServiceUnavailable")] * (TOTAL_MAX_ATTEMPTS - 1)
    storage.store(video, KEY)
    assert double.operations() == [*["put"] * TOTAL_MAX_ATTEMPTS, "head"]


# --- parts that a dead storage kept


def die_after_the_first_part(double: Double) -> None:
    def die(_handler: Handler) -> bool:
        dead(double)
        return False

    double.faults["part"] = [die]


def test_parts_that_a_dead_storage_kept_are_removed_once_it_is_back(
    double: Double, spaces: Opened, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = spaces()
    large = make_video(tmp_path, b"v" * (2 * PART_BYTES))
    die_after_the_first_part(double)
    with pytest.raises(UploadFailed):
        storage.store(large, KEY)
    assert len(double.uploads) == 1
    assert "may remain" in caplog.text
    double.always.clear()
    double.always["abort"] = status(503, "SlowDown")
    storage.store(make_video(tmp_path, b"small", poster=None), KEY)  # it cannot be cleared up yet, which costs no video
    assert len(double.uploads) == 1
    double.always.clear()
    storage.store(make_video(tmp_path, b"small", poster=None), KEY)
    assert double.uploads == {}
    double.seen.clear()
    storage.store(make_video(tmp_path, b"small", poster=None), KEY)
    assert double.operations() == ["put", "head"]
