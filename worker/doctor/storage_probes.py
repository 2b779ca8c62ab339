"""How each storage is tried: one line in `PROBES` for each storage of `worker.delivery.storage`."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from worker.base import scratch
from worker.base.errors import SettingsError
from worker.base.settings import Settings
from worker.delivery.storage import Storage
from worker.delivery.storage.base import VIDEO_SUFFIX, StorageKind
from worker.delivery.storage.local import LocalStorage
from worker.delivery.storage.spaces import SpacesStorage
from worker.delivery.storage.spaces_client import make_client
from worker.delivery.storage.spaces_errors import STORAGE_FAILURES, upload_errors
from worker.delivery.storage.spaces_place import Place, place_of
from worker.doctor import disks
from worker.media import VideoFile

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONTENT = b"written by python -m worker.doctor; may be deleted\n"
# Less patient than an upload: two attempts of 3 s end within the check's time limit, and say what failed.
_ATTEMPTS = 2
CONNECT_TIMEOUT_S = 2.0
READ_TIMEOUT_S = 3.0
_LINK_GOOD_S = 60


@dataclass(frozen=True, slots=True)
class Probe:
    """A storage, and what its promise leaves out.

    `read` and `delete` take the key of a stored object, suffix included; `accepts` asks whether uploads are taken and
    leaves no object behind. They raise what `Storage.store` raises, and OSError.
    """

    storage: Storage
    read: Callable[[str], bytes]
    delete: Callable[[str], None]
    accepts: Callable[[], None]


def new_key() -> str:
    """A key that no video has, without a suffix."""
    return f"doctor/{uuid.uuid4().hex[:16]}"


def send(storage: Storage, key: str) -> str:
    """Store the small object as a video would be; answers its URL. Raises UploadFailed."""
    with scratch.folder("doctor") as home:
        path = home / "probe.mp4"
        path.write_bytes(CONTENT)
        digest = hashlib.sha256(CONTENT).hexdigest()
        return storage.store(VideoFile(path, None, 2, 2, 1, 1, len(CONTENT), digest), key).video_url


@contextmanager
def _spaces(settings: Settings) -> Iterator[Probe]:
    place, client = _impatient(settings)
    storage = SpacesStorage(
        client,
        place,
        acl=settings.storage_acl,
        presign_expiry_s=_LINK_GOOD_S,
        public_base_url=settings.storage_public_url,
    )

    def read(key: str) -> bytes:
        with upload_errors(key):
            return client.get_object(Bucket=place.bucket, Key=key)["Body"].read()

    def delete(key: str) -> None:
        with upload_errors(key):
            client.delete_object(Bucket=place.bucket, Key=key)

    def accepts() -> None:
        # A multipart upload that is begun and given up needs every permission of a video's, and is never visible.
        key = new_key()
        with upload_errors(key):
            begun = client.create_multipart_upload(Bucket=place.bucket, Key=key, ACL=settings.storage_acl)
        with suppress(*STORAGE_FAILURES, KeyError):
            client.abort_multipart_upload(Bucket=place.bucket, Key=key, UploadId=begun["UploadId"])

    try:
        yield Probe(storage, read, delete, accepts)
    finally:
        client.close()


def _impatient(settings: Settings) -> tuple[Place, S3Client]:
    endpoint_url, bucket = settings.storage_endpoint_url, settings.storage_bucket
    access_key, secret_key = settings.storage_access_key, settings.storage_secret_key
    if endpoint_url is None or bucket is None or access_key is None or secret_key is None:
        raise SettingsError(["storage is configured in part: set all four DIGITAL_OCEAN_* variables"])
    place = place_of(endpoint_url, bucket, settings.storage_region)
    client = make_client(
        place,
        access_key.get_secret_value(),
        secret_key.get_secret_value(),
        total_max_attempts=_ATTEMPTS,
        connect_timeout_s=CONNECT_TIMEOUT_S,
        read_timeout_s=READ_TIMEOUT_S,
    )
    return place, client


@contextmanager
def _folder(settings: Settings) -> Iterator[Probe]:
    storage = LocalStorage.from_settings(settings)
    was_there = settings.output_dir.exists()

    def path_of(key: str) -> Path:
        url = storage.links(key.removesuffix(VIDEO_SUFFIX), poster=False).video_url
        return Path(url2pathname(urlsplit(url).path))

    def delete(key: str) -> None:
        path_of(key).unlink()
        made = [path_of(key).parent] + ([] if was_there else [settings.output_dir])
        for folder in made:
            with suppress(OSError):  # whatever else lies there stays
                folder.rmdir()

    def accepts() -> None:
        settings.output_dir.mkdir(parents=True, exist_ok=True)
        disks.write_probe(settings.output_dir, len(CONTENT))

    yield Probe(storage, lambda key: path_of(key).read_bytes(), delete, accepts)


PROBES: Mapping[StorageKind, Callable[[Settings], AbstractContextManager[Probe]]] = {
    SpacesStorage: _spaces,
    LocalStorage: _folder,
}
