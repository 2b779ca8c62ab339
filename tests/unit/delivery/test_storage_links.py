"""What is asked of a storage long after the upload: is the video still there, and what are its URLs now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.kits.delivery import KEY, MIB, make_video
from tests.kits.s3_double import BUCKET, Double, Fault, Handler, reset, status
from worker.base.errors import UploadFailed
from worker.base.settings import Settings
from worker.delivery.storage.base import Files
from worker.delivery.storage.spaces import SpacesStorage
from worker.delivery.storage.spaces_client import make_client
from worker.delivery.storage.spaces_place import place_of

EVERYTHING = ("put", "head", "create", "part", "complete", "abort")
Opened = Callable[..., SpacesStorage]


def dead(double: Double, fault: Fault = reset) -> None:
    double.always.update(dict.fromkeys(EVERYTHING, fault))


def test_one_question_is_one_request_and_links_are_none(double: Double, open_double: Opened, tmp_path: Path) -> None:
    storage = open_double(attempts=2, acl="private")
    video = make_video(tmp_path / "job")
    storage.store(video, KEY)
    double.seen.clear()
    storage.links(KEY, Files(".mp4", poster=True))
    assert double.operations() == []
    storage.holds(f"{KEY}.mp4", sha256=video.sha256)
    assert double.operations() == ["head"]


def test_private_links_are_signed_anew(double: Double, open_double: Opened) -> None:
    delivery = open_double(attempts=2, acl="private", presign_expiry_s=77).links(KEY, Files(".mp4", poster=True))
    assert delivery.thumbnail_url is not None
    for url, suffix in ((delivery.video_url, ".mp4"), (delivery.thumbnail_url, ".jpg")):
        assert url.startswith(f"{double.endpoint_url}/{BUCKET}/{KEY}{suffix}?")
        query = parse_qs(urlsplit(url).query)
        assert query["X-Amz-Expires"] == ["77"]
        assert query["X-Amz-Signature"]
    assert open_double(attempts=2, acl="private").links(KEY, Files(".mp4")).thumbnail_url is None


def test_an_object_without_a_digest_counts_as_the_video(double: Double, open_double: Opened) -> None:
    def bare(handler: Handler) -> bool:  # as a copy made by other tools
        handler.answer(200, **{"Content-Length": "10"})
        return True

    double.always["head"] = bare
    assert open_double(attempts=2).holds(f"{KEY}.mp4", sha256="0" * 64)


@pytest.mark.parametrize("fault", [reset, status(503, "SlowDown"), status(403, "AccessDenied")])
def test_a_storage_that_does_not_answer_the_question_says_so(double: Double, open_double: Opened, fault: Fault) -> None:
    dead(double, fault)
    with pytest.raises(UploadFailed) as caught:
        open_double(attempts=2).holds(f"{KEY}.mp4", sha256="0" * 64)
    assert "127.0.0.1" not in str(caught.value)


def settings_for(double: Double) -> Settings:
    return Settings(
        storage_endpoint_url=double.endpoint_url,
        storage_access_key="access-key-value",
        storage_secret_key="secret-key-value",
        storage_bucket=BUCKET,
    )


def test_a_job_does_not_wait_long_for_the_answer(double: Double) -> None:
    asked: list[dict[str, Any]] = []

    def connect(*arguments: Any, **options: Any) -> Any:
        asked.append(options)
        return make_client(*arguments, **options)

    storage = SpacesStorage.from_settings(settings_for(double), connect)
    dead(double)
    with pytest.raises(UploadFailed):
        storage.holds(f"{KEY}.mp4", sha256="0" * 64)
    assert double.operations() == ["head"] * 2
    assert asked == [{}, {"total_max_attempts": 2, "connect_timeout_s": 5.0, "read_timeout_s": 5.0}]


# --- after an outage


def test_an_upload_that_failed_does_not_use_up_the_retries_of_later_ones(double: Double, tmp_path: Path) -> None:
    """Botocore's retries draw on a quota of the client's whole life: after a failure another client takes its place."""
    place = place_of(double.endpoint_url, BUCKET)
    clients = [make_client(place, f"key{number}", "secret", total_max_attempts=1) for number in range(2)]
    storage = SpacesStorage(clients[0], place, renew=lambda: clients[1])
    video = make_video(tmp_path, poster=None)
    storage.store(video, KEY)
    double.faults["put"] = [status(503, "ServiceUnavailable")]
    with pytest.raises(UploadFailed):
        storage.store(video, KEY)
    storage.store(video, KEY)
    for client in clients:
        client.close()
    keys = [headers["authorization"].partition("/")[0][-4:] for operation, headers in double.seen if operation == "put"]
    assert keys == ["key0", "key0", "key1"]


def test_the_storage_of_the_settings_renews_its_client(double: Double, tmp_path: Path) -> None:
    made: list[object] = []

    def connect(*arguments: Any, **options: Any) -> Any:
        made.append(make_client(*arguments, **{**options, "total_max_attempts": 1}))
        return made[-1]

    storage = SpacesStorage.from_settings(settings_for(double), connect)
    before = len(made)
    dead(double)
    with pytest.raises(UploadFailed):
        storage.store(make_video(tmp_path, poster=None), KEY)
    assert len(made) == before + 1


# --- parts that a dead storage kept


def die_after_the_first_part(double: Double) -> None:
    def die(_handler: Handler) -> bool:
        dead(double)
        return False

    double.faults["part"] = [die]


def test_parts_that_a_dead_storage_kept_are_removed_once_it_is_back(
    double: Double, open_double: Opened, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = open_double(attempts=2)
    large = make_video(tmp_path / "job", b"v" * (2 * MIB))
    die_after_the_first_part(double)
    with pytest.raises(UploadFailed):
        storage.store(large, KEY)
    assert len(double.uploads) == 1
    assert "may remain" in caplog.text
    double.always.clear()
    double.always["abort"] = status(503, "SlowDown")
    storage.store(
        make_video(tmp_path / "job", b"small", poster=None), KEY
    )  # it cannot be cleared up yet, which costs no video
    assert len(double.uploads) == 1
    double.always.clear()
    storage.store(make_video(tmp_path / "job", b"small", poster=None), KEY)
    assert double.uploads == {}
    double.seen.clear()
    storage.store(make_video(tmp_path / "job", b"small", poster=None), KEY)
    assert double.operations() == ["put", "head"]
