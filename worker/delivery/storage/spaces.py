"""DigitalOcean Spaces, and any S3-compatible server, through boto3.

An object is one put with Content-MD5 up to 64 MiB, a multipart upload with Content-MD5 on every part above. A multipart
upload that fails is aborted, so that no paid-for parts stay behind; where the abort fails too, it is sent again after
the next upload that works. Either way the sha256 is in the object's metadata, and size and sha256 are read back before
a URL is returned. Requests are retried in botocore's standard mode, all under one wall clock for each upload.

The client reads nothing of its surroundings: see worker/delivery/storage/spaces_client.py.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from botocore.exceptions import ClientError

from worker.base.errors import UploadFailed
from worker.base.settings import Settings
from worker.base.stop import Flag
from worker.delivery.storage.base import (
    PREVIEW_SUFFIX,
    UPLOAD_S,
    Delivery,
    Files,
    StoredFile,
    check_etag,
    check_unchanged,
    deliver,
    deliver_beside,
    deliver_file,
    links,
    upload_s,
)
from worker.delivery.storage.spaces_client import make_client
from worker.delivery.storage.spaces_errors import (
    STORAGE_FAILURES,
    facts_of,
    is_no_such_upload,
    is_not_found,
    not_s3,
    upload_errors,
)
from worker.delivery.storage.spaces_place import Place, place_of, public_url
from worker.delivery.storage.spaces_wire import bounded, under
from worker.media import VideoFile
from worker.net import exchange

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

logger = logging.getLogger(__name__)

MIB = 1024 * 1024
MULTIPART_THRESHOLD_BYTES = 64 * MIB
MAX_LEFT_BEHIND = 1000
# A job waits for `holds`: 2 attempts of 5 s at most.
ASKING_ATTEMPTS = 2
ASKING_TIMEOUT_S = 5.0
ASKING_S = 2 * ASKING_TIMEOUT_S
ABORT_S = 5.0
READING_S = 60.0
PART_BYTES = 16 * MIB  # S3 takes no part below 5 MiB but the last, and no more than 10,000 parts
# A key is written again only by the redelivery of its own job, so that caches may keep what they have for a year.
_CACHE_CONTROL = {
    "public-read": "public, max-age=31536000, immutable",
    "private": "private, max-age=31536000, immutable",
}


class SpacesStorage:
    """One bucket. Safe to use from several threads, as boto3's clients are.

    `public_base_url` is the public or CDN base of the URLs, None for the bucket's own address. With acl `private` every
    URL is presigned for `presign_expiry_s` and points at the bucket, because a CDN does not check signatures. `asking`
    is a client with shorter timeouts for `holds`, `client` itself by default. `renew` makes another client like
    `client`, which replaces it after an upload that failed: botocore's retries draw on a quota of the client's whole
    life, which one outage uses up and only many successes refill; without it the first 503 afterwards would fail an
    upload. An upload has `least_upload_s`, and more by its size.
    """

    def __init__(
        self,
        client: S3Client,
        place: Place,
        *,
        acl: Literal["public-read", "private"] = "public-read",
        presign_expiry_s: int = 86_400,
        public_base_url: str | None = None,
        multipart_threshold_bytes: int = MULTIPART_THRESHOLD_BYTES,
        part_bytes: int = PART_BYTES,
        asking: S3Client | None = None,
        renew: Callable[[], S3Client] | None = None,
        least_upload_s: float = UPLOAD_S,
    ) -> None:
        self._client = client
        self._asking = client if asking is None else asking
        self._renew = renew
        self._upload_s = least_upload_s
        self._place = place
        self._acl = acl
        self._presign_expiry_s = presign_expiry_s
        self._base_url = place.bucket_url if public_base_url is None else public_base_url
        self._multipart_threshold_bytes = multipart_threshold_bytes
        self._part_bytes = part_bytes
        self._left_behind: deque[tuple[str, str]] = deque(maxlen=MAX_LEFT_BEHIND)

    @staticmethod
    def is_configured(settings: Settings) -> bool:
        return settings.storage_is_remote

    @classmethod
    def from_settings(cls, settings: Settings, connect: Callable[..., S3Client] = make_client) -> SpacesStorage:
        """Raises SettingsError where the four settings are incomplete or an address cannot be used."""
        bucket = settings.bucket
        place = place_of(bucket.endpoint_url, bucket.name, settings.storage_region)
        renew = partial(connect, place, bucket.access_key, bucket.secret_key)
        return cls(
            renew(),
            place,
            acl=settings.storage_acl,
            presign_expiry_s=settings.presign_expiry_s,
            public_base_url=settings.storage_public_url,
            asking=renew(
                total_max_attempts=ASKING_ATTEMPTS,
                connect_timeout_s=ASKING_TIMEOUT_S,
                read_timeout_s=ASKING_TIMEOUT_S,
            ),
            renew=renew,
        )

    def describe(self) -> str:
        return f"bucket {self._place.bucket} in {self._place.region}"

    def store(self, video: VideoFile, key: str, *, stop: Flag | None = None) -> Delivery:
        """See `Storage.store`."""
        try:
            return self._watched(partial(deliver, video, key, self._put), video, key, stop)
        except UploadFailed:
            if self._renew is not None:
                self._client = self._renew()
            raise

    def store_beside(self, video: VideoFile, key: str, *, stop: Flag | None = None) -> Delivery:
        """See `Storage.store_beside`."""
        try:
            return self._watched(partial(deliver_beside, video, key, self._put), video, key, stop)
        except UploadFailed:
            return Delivery("", None)

    def store_file(self, file: Path, name: str, *, stop: Flag | None = None) -> str:
        """See `Storage.store_file`."""
        with upload_errors(name):
            clock = exchange.Clock.start(upload_s(file.stat().st_size, self._upload_s), stop)
            return bounded(clock, partial(deliver_file, file, name, self._put))

    def holds(self, name: str, *, sha256: str, stop: Flag | None = None) -> bool:
        """See `Storage.holds`. Where the key may not list the bucket, some servers return 403 for what is gone."""

        def ask() -> bool:
            try:
                head = self._asking.head_object(Bucket=self._place.bucket, Key=name)
            except ClientError as failure:
                if is_not_found(failure):
                    return False
                raise
            return head.get("Metadata", {}).get("sha256", sha256) == sha256

        with upload_errors(name):
            return bounded(exchange.Clock.start(ASKING_S, stop), ask)

    def read(self, name: str, *, stop: Flag | None = None) -> bytes:
        """See `Storage.read`."""
        with upload_errors(name):
            return bounded(
                exchange.Clock.start(READING_S, stop),
                lambda: self._client.get_object(Bucket=self._place.bucket, Key=name)["Body"].read(),
            )

    def _watched(self, work: Callable[[], Delivery], video: VideoFile, key: str, stop: Flag | None) -> Delivery:
        """Do `work` under the wall clock of an upload, after which its connection is shut."""
        with upload_errors(key):
            return bounded(exchange.Clock.start(upload_s(video.size_bytes, self._upload_s), stop), work)

    def sweep(self) -> None:
        """See `Storage.sweep`. The parts of a killed upload are left to the bucket's lifecycle rule."""

    def links(self, key: str, files: Files) -> Delivery:
        """See `Storage.links`."""
        return links(key, files, self._url)

    def _put(self, item: StoredFile) -> str:
        started = time.monotonic()
        with upload_errors(item.key):
            if item.size_bytes > self._multipart_threshold_bytes:
                self._put_in_parts(item)
            else:
                self._put_whole(item)
            self._check_arrived(item)
            url = self._url(item.key)
            self._clear_up()
        logger.info("stored %s: %d bytes in %.1f s", item.key, item.size_bytes, time.monotonic() - started)
        return url

    def _put_whole(self, item: StoredFile) -> None:
        content = item.path.read_bytes()
        check_unchanged(item, hashlib.sha256(content).hexdigest())
        stored = self._client.put_object(
            Bucket=self._place.bucket, Key=item.key, Body=content, ContentMD5=_md5(content), **self._headers(item)
        )
        _check_taken(stored, content)

    def _put_in_parts(self, item: StoredFile) -> None:
        created = self._client.create_multipart_upload(Bucket=self._place.bucket, Key=item.key, **self._headers(item))
        upload_id = _field(created, "UploadId")
        try:
            self._complete(item, upload_id, self._send_parts(item, upload_id))
        except BaseException:  # a stop of the worker must not leave parts behind either
            self._abort(item.key, upload_id)
            raise

    def _send_parts(self, item: StoredFile, upload_id: str) -> list[CompletedPartTypeDef]:
        digest = hashlib.sha256()
        parts: list[CompletedPartTypeDef] = []
        with item.path.open("rb") as stream:
            while content := stream.read(self._part_bytes):
                digest.update(content)
                number = len(parts) + 1
                sent = self._client.upload_part(
                    Bucket=self._place.bucket,
                    Key=item.key,
                    UploadId=upload_id,
                    PartNumber=number,
                    Body=content,
                    ContentMD5=_md5(content),
                )
                _check_taken(sent, content)
                parts.append({"PartNumber": number, "ETag": _field(sent, "ETag")})
        check_unchanged(item, digest.hexdigest())
        return parts

    def _complete(self, item: StoredFile, upload_id: str, parts: list[CompletedPartTypeDef]) -> None:
        try:
            self._client.complete_multipart_upload(
                Bucket=self._place.bucket, Key=item.key, UploadId=upload_id, MultipartUpload={"Parts": parts}
            )
        except ClientError as failure:
            # Where the first response was lost, the retry finds the upload gone. The check of the object decides.
            if not is_no_such_upload(failure):
                raise
            logger.info("completing %s: the upload was gone, checking the object", item.key)

    def _abort(self, key: str, upload_id: str) -> bool:
        try:
            with under(exchange.Clock.start(ABORT_S, None)):  # that of the upload may be over
                self._client.abort_multipart_upload(Bucket=self._place.bucket, Key=key, UploadId=upload_id)
        except (*STORAGE_FAILURES, UploadFailed) as failure:
            # The error that led here is the one to report.
            if not is_no_such_upload(failure):
                logger.warning("parts of %s may remain, the abort failed: %s", key, facts_of(failure))
                self._left_behind.append((key, upload_id))
                return False
        return True

    def _clear_up(self) -> None:
        """Abort the uploads whose abort failed, now that the storage works again; up to the first failure."""
        with suppress(IndexError):  # none is left: another thread does the same
            while self._abort(*self._left_behind.popleft()):
                pass

    def _check_arrived(self, item: StoredFile) -> None:
        head = self._client.head_object(Bucket=self._place.bucket, Key=item.key)
        stored_sha256 = head.get("Metadata", {}).get("sha256")
        if head.get("ContentLength") != item.size_bytes or stored_sha256 != item.sha256:
            logger.warning("the stored object %s has another size or sha256 than the file sent", item.key)
            raise UploadFailed("the storage does not hold what was sent to it: send the job again")

    def _url(self, key: str) -> str:
        if self._acl == "public-read":
            return public_url(self._base_url, key)
        return self._client.generate_presigned_url(
            "get_object", Params={"Bucket": self._place.bucket, "Key": key}, ExpiresIn=self._presign_expiry_s
        )

    def _headers(self, item: StoredFile) -> dict[str, Any]:
        return {
            "ACL": self._acl,
            "ContentType": item.content_type,
            "ContentDisposition": "inline",
            "CacheControl": "no-cache" if item.key.endswith(PREVIEW_SUFFIX) else _CACHE_CONTROL[self._acl],
            "Metadata": {"sha256": item.sha256},
        }


def _md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode("ascii")


def _check_taken(answer: Mapping[str, Any], content: bytes) -> None:
    """Raise UploadFailed where the server says that it holds other bytes."""
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    check_etag(headers, hashlib.md5(content, usedforsecurity=False).hexdigest())


def _field(answer: Mapping[str, Any], name: str) -> str:
    value = answer.get(name)
    if not isinstance(value, str):
        raise not_s3(name)
    return value
