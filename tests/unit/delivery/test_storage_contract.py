"""What every storage promises, shown by both: the folder, and a bucket of an S3 server (tests/kits/s3_double.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kits.delivery import KEY, make_video
from tests.kits.s3_double import BUCKET, Double, serving
from worker.base.errors import UploadFailed
from worker.delivery.storage import Storage
from worker.delivery.storage.base import Files
from worker.delivery.storage.local import LocalStorage
from worker.delivery.storage.spaces import SpacesStorage
from worker.delivery.storage.spaces_client import make_client
from worker.delivery.storage.spaces_place import place_of
from worker.media import FORMATS
from worker.request.payload import OutputFormat


class Scene:
    """A storage, and what is stored in it."""

    def __init__(self, storage: Storage, folder: Path, double: Double | None) -> None:
        self.storage, self._folder, self._double = storage, folder, double

    def objects(self) -> dict[str, bytes]:
        """Everything that a reader could see, by key."""
        if self._double is not None:
            return {path.removeprefix(f"/{BUCKET}/"): found.body for path, found in self._double.objects.items()}
        files = [path for path in self._folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(self._folder)): path.read_bytes() for path in files}

    def content_types(self) -> dict[str, str]:
        """By key; a folder has none."""
        if self._double is None:
            return {}
        return {
            path.removeprefix(f"/{BUCKET}/"): found.headers["content-type"]
            for path, found in self._double.objects.items()
        }


@pytest.fixture(params=["folder", "spaces", "spaces in parts"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    if request.param == "folder":
        yield Scene(LocalStorage(tmp_path / "out"), tmp_path / "out", None)
        return
    with serving() as double:
        place = place_of(double.endpoint_url, BUCKET)
        client = make_client(place, "key", "secret", total_max_attempts=1)
        part_bytes = 4 if request.param == "spaces in parts" else 10**6
        storage = SpacesStorage(client, place, multipart_threshold_bytes=part_bytes, part_bytes=part_bytes)
        yield Scene(storage, tmp_path, double)
        client.close()


def test_both_files_are_stored_under_their_key_and_the_source_stays(scene: Scene, tmp_path: Path) -> None:
    video = make_video(tmp_path / "job")
    delivery = scene.storage.store(video, KEY)
    assert scene.objects() == {f"{KEY}.mp4": b"video bytes", f"{KEY}.jpg": b"poster bytes"}
    assert delivery.video_url.endswith(f"/{KEY}.mp4")
    assert str(delivery.thumbnail_url).endswith(f"/{KEY}.jpg")
    assert video.path.read_bytes() == b"video bytes"


@pytest.mark.parametrize("why", ["none was asked for", "it was lost"])
def test_without_a_poster_there_is_no_thumbnail(
    scene: Scene, tmp_path: Path, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    video = make_video(tmp_path / "job", poster=None if why == "none was asked for" else b"poster")
    if video.poster is not None:
        video.poster.unlink()
    assert scene.storage.store(video, KEY).thumbnail_url is None
    assert scene.objects() == {f"{KEY}.mp4": b"video bytes"}
    assert ("poster" in caplog.text) == (why == "it was lost")


@pytest.mark.parametrize("name", list(FORMATS))
def test_every_format_has_its_suffix_and_the_frames_stand_beside_it(
    scene: Scene, tmp_path: Path, name: OutputFormat
) -> None:
    video = make_video(tmp_path / "job", output_format=name, frames=b"a zip")
    delivery = scene.storage.store(video, KEY)
    files = Files(f".{name}", poster=True, frames=True)
    assert scene.objects() == {f"{KEY}.{name}": b"video bytes", f"{KEY}.jpg": b"poster bytes", f"{KEY}.zip": b"a zip"}
    assert delivery == scene.storage.links(KEY, files)
    assert str(delivery.frames_url).endswith(f"/{KEY}.zip")
    assert scene.storage.read(f"{KEY}.{name}") == b"video bytes"
    types = {f"{KEY}.{name}": FORMATS[name].content_type, f"{KEY}.jpg": "image/jpeg", f"{KEY}.zip": "application/zip"}
    assert scene.content_types() in ({}, types)


def test_what_stands_beside_a_video_is_stored_without_it(scene: Scene, tmp_path: Path) -> None:
    delivery = scene.storage.store_beside(make_video(tmp_path / "job", frames=b"a zip"), KEY)
    assert scene.objects() == {f"{KEY}.jpg": b"poster bytes", f"{KEY}.zip": b"a zip"}
    assert (delivery.video_url, bool(delivery.thumbnail_url), bool(delivery.frames_url)) == ("", True, True)


def test_a_lost_zip_costs_its_url_alone(scene: Scene, tmp_path: Path) -> None:
    video = make_video(tmp_path / "job", frames=b"a zip")
    assert video.frames is not None
    video.frames.unlink()
    delivery = scene.storage.store(video, KEY)
    assert (bool(delivery.video_url), bool(delivery.thumbnail_url), delivery.frames_url) == (True, True, None)


def test_what_is_not_there_cannot_be_read(scene: Scene) -> None:
    with pytest.raises(UploadFailed):
        scene.storage.read(f"{KEY}.mp4")


def test_a_redelivery_writes_the_same_object(scene: Scene, tmp_path: Path) -> None:
    first = scene.storage.store(make_video(tmp_path / "job", b"first"), KEY)
    assert scene.storage.store(make_video(tmp_path / "job", b"second"), KEY) == first
    assert scene.objects() == {f"{KEY}.mp4": b"second", f"{KEY}.jpg": b"poster bytes"}


@pytest.mark.parametrize("fault", ["damaged", "lost"])
def test_a_video_that_is_not_what_was_encoded_is_not_stored(scene: Scene, tmp_path: Path, fault: str) -> None:
    video = make_video(tmp_path / "job")
    video.path.write_bytes(b"VIDEO BYTES") if fault == "damaged" else video.path.unlink()
    with pytest.raises(UploadFailed, match="damaged" if fault == "damaged" else None) as caught:
        scene.storage.store(video, KEY)
    assert str(tmp_path) not in str(caught.value)
    assert scene.objects() == {}


def test_a_stored_video_is_held_under_its_own_digest_only(scene: Scene, tmp_path: Path) -> None:
    video = make_video(tmp_path / "job")
    assert not scene.storage.holds(f"{KEY}.mp4", sha256=video.sha256)
    scene.storage.store(video, KEY)
    assert scene.storage.holds(f"{KEY}.mp4", sha256=video.sha256)
    assert not scene.storage.holds(f"{KEY}.mp4", sha256="0" * 64)
    assert not scene.storage.holds(KEY.replace("/0", "/1") + ".mp4", sha256=video.sha256)


@pytest.mark.parametrize("poster", [b"poster bytes", None], ids=["poster", "no poster"])
def test_public_links_are_those_of_the_upload(scene: Scene, tmp_path: Path, poster: bytes | None) -> None:
    delivery = scene.storage.store(make_video(tmp_path / "job", poster=poster), KEY)
    assert scene.storage.links(KEY, Files(".mp4", poster=poster is not None)) == delivery


def test_a_sweep_keeps_what_is_stored(scene: Scene, tmp_path: Path) -> None:
    scene.storage.sweep()
    scene.storage.store(make_video(tmp_path / "job"), KEY)
    scene.storage.sweep()
    assert len(scene.objects()) == 2
