"""The configured storage: a small object goes the way of a video, is read back as a customer would, and is deleted.

`PROBES` has a line for each storage of `worker.delivery.storage`.
"""

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

import urllib3
from botocore.exceptions import ClientError

from worker.base import os_errors, scratch
from worker.base.errors import SettingsError, UploadFailed
from worker.base.settings import Settings
from worker.delivery.storage import STORAGES, Storage
from worker.delivery.storage.base import VIDEO_SUFFIXES, Files, StorageKind
from worker.delivery.storage.local import LocalStorage
from worker.delivery.storage.spaces import SpacesStorage
from worker.delivery.storage.spaces_client import make_client
from worker.delivery.storage.spaces_errors import STORAGE_FAILURES, facts_of, upload_errors
from worker.delivery.storage.spaces_place import Place, place_of
from worker.doctor import disks
from worker.doctor.deployment import Deployment
from worker.doctor.report import Finding, fail, from_message, ok, together, warn
from worker.media import VideoFile

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONTENT = b"written by python -m worker.doctor; may be deleted\n"
# Less patient than an upload: two attempts of 3 s end within the check's time limit, and say what failed.
_ATTEMPTS = 2
VIDEO_SUFFIX = VIDEO_SUFFIXES[0]
CONNECT_TIMEOUT_S = 2.0
READ_TIMEOUT_S = 3.0
_LINK_GOOD_S = 60
_TRANSIENT = frozenset({408, 429})
_TRANSIENT_CODES = frozenset({"RequestTimeout", "SlowDown"})  # with status 400 and 503


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


def _new_key() -> str:
    """A key that no video has, without a suffix."""
    return f"doctor/{uuid.uuid4().hex[:16]}"


def _send(storage: Storage, key: str) -> str:
    """Store the small object as a video would be. Returns its URL. Raises UploadFailed."""
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
        # A multipart upload that is begun and aborted needs every permission of a video's, and is never visible.
        key = _new_key()
        with upload_errors(key):
            begun = client.create_multipart_upload(Bucket=place.bucket, Key=key, ACL=settings.storage_acl)
        with suppress(*STORAGE_FAILURES, KeyError):
            client.abort_multipart_upload(Bucket=place.bucket, Key=key, UploadId=begun["UploadId"])

    try:
        yield Probe(storage, read, delete, accepts)
    finally:
        client.close()


def _impatient(settings: Settings) -> tuple[Place, S3Client]:
    bucket = settings.bucket
    place = place_of(bucket.endpoint_url, bucket.name, settings.storage_region)
    client = make_client(
        place,
        bucket.access_key,
        bucket.secret_key,
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
        url = storage.links(key.removesuffix(VIDEO_SUFFIX), Files(VIDEO_SUFFIX)).video_url
        return Path(url2pathname(urlsplit(url).path))

    def delete(key: str) -> None:
        path_of(key).unlink()
        made = [path_of(key).parent] + ([] if was_there else [settings.output_dir])
        for folder in made:
            with suppress(OSError):  # what else is in it stays
                folder.rmdir()

    def accepts() -> None:
        settings.output_dir.mkdir(parents=True, exist_ok=True)
        disks.write_probe(settings.output_dir, len(CONTENT))

    yield Probe(storage, lambda key: path_of(key).read_bytes(), delete, accepts)


PROBES: Mapping[StorageKind, Callable[[Settings], AbstractContextManager[Probe]]] = {
    SpacesStorage: _spaces,
    LocalStorage: _folder,
}


def check(deployment: Deployment) -> Finding:
    """Write, read and delete a small object with the configured storage."""
    return _with_probe(deployment, _write_read_delete)


def check_accepts(deployment: Deployment) -> Finding:
    """For the start: whether the storage takes uploads with this key, without leaving an object."""

    def ask(deployment: Deployment, probe: Probe) -> Finding:
        try:
            probe.accepts()
        except UploadFailed as failure:
            return refusal(failure)
        except OSError as failure:
            reason, advice = os_errors.reason_of(failure)
            return fail(f"{probe.storage.describe()} {reason}", advice, stops_jobs=True)
        return _accepted(deployment, probe, "takes uploads")

    return _with_probe(deployment, ask)


def _with_probe(deployment: Deployment, ask: Callable[[Deployment, Probe], Finding]) -> Finding:
    if deployment.storage_is_unreadable:
        return warn("not checked: the storage's settings cannot be read", "fix what the line settings says")
    settings = deployment.settings
    kind = next(kind for kind in STORAGES if kind.is_configured(settings))
    try:
        with PROBES[kind](settings) as probe:
            return ask(deployment, probe)
    except SettingsError as failure:
        found, advice = from_message("; ".join(failure.problems))
        return fail(found, advice, stops_jobs=True)


def _write_read_delete(deployment: Deployment, probe: Probe) -> Finding:
    key = _new_key()
    try:
        link = _send(probe.storage, key)
    except UploadFailed as failure:
        return refusal(failure)
    findings = [_accepted(deployment, probe, "an object was written")]
    try:
        came_back = probe.read(key + VIDEO_SUFFIX) == CONTENT
        findings.append(ok("read") if came_back else fail("it came back changed", "send its operator this line"))
    except (UploadFailed, OSError) as failure:
        findings.append(warn(f"it could not be read{_facts(failure)}", "allow the key to read objects of the bucket"))
    findings += _link(link)
    try:
        probe.delete(key + VIDEO_SUFFIX)
        findings.append(ok("deleted"))
    except (UploadFailed, OSError) as failure:
        advice = f"allow the key to delete objects, or delete {key}{VIDEO_SUFFIX} yourself: nothing else needs it"
        findings.append(warn(f"it could not be deleted{_facts(failure)}", advice))
    return together(findings)


def refusal(failure: UploadFailed) -> Finding:
    """An upload that failed: fatal where the storage said no, and may pass where it was silent or busy."""
    found, advice = from_message(failure.message)
    return fail(f"{found}{_facts(failure)}", advice, stops_jobs=_is_final(failure.__cause__))


def _accepted(deployment: Deployment, probe: Probe, found: str) -> Finding:
    settings = deployment.settings
    if settings.lacks_bucket:
        return warn(
            f"{probe.storage.describe()}: {found}, but nobody can fetch videos from there: each travels in the "
            f"answer of its job, as {settings.inline_max_bytes} bytes at most",
            "set the four DIGITAL_OCEAN_* variables",
        )
    return ok(f"{probe.storage.describe()}: {found}")


def _is_final(cause: BaseException | None) -> bool:
    if isinstance(cause, ClientError):
        status = int(cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code = cause.response.get("Error", {}).get("Code")
        return status < 500 and status not in _TRANSIENT and code not in _TRANSIENT_CODES
    # A folder that cannot be written to stays so; what the network does may pass.
    return isinstance(cause, OSError) and not isinstance(cause, (ConnectionError, TimeoutError))


def _facts(failure: Exception) -> str:
    cause = failure.__cause__
    return f" ({facts_of(cause)})" if isinstance(cause, ClientError) else ""


def _link(url: str) -> list[Finding]:
    """Whether the URL that customers get leads to the object. The URL may be signed and is never shown."""
    if not url.startswith("http"):
        return []
    advice = "check DIGITAL_OCEAN_BUCKET_URL, and that STORAGE_ACL fits the bucket: customers get URLs like this one"
    timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S)
    try:
        answer = urllib3.request("GET", url, timeout=timeout, retries=False)
    except urllib3.exceptions.HTTPError as failure:
        return [warn(f"its public URL cannot be reached ({type(failure).__name__})", advice)]
    if answer.status != 200:
        return [warn(f"its public URL answers {answer.status}", advice)]
    if answer.data != CONTENT:
        return [warn("its public URL leads to something else", advice)]
    return [ok("its public URL works")]
