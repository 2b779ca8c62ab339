"""The Spaces storage with the real boto3 client over a socket, against moto's S3 server."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.kits.delivery import KEY, MIB, make_video
from tests.kits.s3_double import BUCKET
from worker.base.errors import UploadFailed
from worker.base.settings import Settings
from worker.delivery.storage import Storage, open_storage
from worker.delivery.storage.spaces import MULTIPART_THRESHOLD_BYTES, SpacesStorage
from worker.delivery.storage.spaces_client import make_client
from worker.delivery.storage.spaces_place import place_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PART_BYTES = 5 * MIB  # the least that S3, and moto, take
ALL_USERS = "http://acs.amazonaws.com/groups/global/AllUsers"


@pytest.fixture(scope="module")
def endpoint_url() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def client(endpoint_url: str) -> Iterator[S3Client]:
    """The tests' own client, which is not the one under test; its bucket is empty."""
    urllib.request.urlopen(urllib.request.Request(f"{endpoint_url}/moto-api/reset", method="POST")).close()
    own = boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    own.create_bucket(Bucket=BUCKET)
    yield own
    own.close()


def settings_for(endpoint_url: str, **more: Any) -> Settings:
    return Settings(
        storage_endpoint_url=endpoint_url,
        storage_access_key="access-key-value",
        storage_secret_key="secret-key-value",
        storage_bucket=BUCKET,
        **more,
    )


def download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        body: bytes = answer.read()
        return body


def keys(client: S3Client) -> list[str]:
    return sorted(entry["Key"] for entry in client.list_objects_v2(Bucket=BUCKET).get("Contents", []))


def grants(client: S3Client, key: str) -> list[tuple[str | None, str | None]]:
    acl = client.get_object_acl(Bucket=BUCKET, Key=key)
    return [(grant["Grantee"].get("URI"), grant.get("Permission")) for grant in acl["Grants"]]


def test_public_objects_carry_their_headers(client: S3Client, endpoint_url: str, tmp_path: Path) -> None:
    video = make_video(tmp_path)
    open_storage(settings_for(endpoint_url)).store(video, KEY)
    assert keys(client) == [f"{KEY}.jpg", f"{KEY}.mp4"]
    expected = {
        f"{KEY}.mp4": ("video/mp4", video.sha256),
        f"{KEY}.jpg": ("image/jpeg", hashlib.sha256(b"poster bytes").hexdigest()),
    }
    for key, (content_type, sha256) in expected.items():
        head = client.head_object(Bucket=BUCKET, Key=key)
        assert head["ContentType"] == content_type
        assert head["ContentDisposition"] == "inline"
        assert head["CacheControl"] == "public, max-age=31536000, immutable"
        assert head["Metadata"] == {"sha256": sha256}
        assert (ALL_USERS, "READ") in grants(client, key)


def test_public_urls_can_be_downloaded(client: S3Client, endpoint_url: str, tmp_path: Path) -> None:
    delivery = open_storage(settings_for(endpoint_url)).store(make_video(tmp_path), KEY)
    assert delivery.video_url == f"{endpoint_url}/{BUCKET}/{KEY}.mp4"
    assert delivery.thumbnail_url == f"{endpoint_url}/{BUCKET}/{KEY}.jpg"
    assert download(delivery.video_url) == b"video bytes"
    assert download(delivery.thumbnail_url) == b"poster bytes"


@pytest.mark.parametrize("base_url", ["https://cdn.example.com", "https://cdn.example.com/"])
def test_cdn_base(client: S3Client, endpoint_url: str, tmp_path: Path, base_url: str) -> None:
    delivery = open_storage(settings_for(endpoint_url, storage_public_url=base_url)).store(make_video(tmp_path), KEY)
    assert delivery.video_url == f"https://cdn.example.com/{KEY}.mp4"
    assert delivery.thumbnail_url == f"https://cdn.example.com/{KEY}.jpg"


def test_private_objects_answer_presigned_urls(
    client: S3Client, endpoint_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="worker")
    settings = settings_for(
        endpoint_url, storage_acl="private", presign_expiry_s=1234, storage_public_url="https://cdn.example.com"
    )
    delivery = open_storage(settings).store(make_video(tmp_path), KEY)
    assert delivery.thumbnail_url is not None
    own_lines = [record.getMessage() for record in caplog.records if record.name.startswith("worker.")]
    assert own_lines
    for url, content in ((delivery.video_url, b"video bytes"), (delivery.thumbnail_url, b"poster bytes")):
        query = parse_qs(urlsplit(url).query)
        assert query["X-Amz-Expires"] == ["1234"]
        assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
        assert query["X-Amz-Credential"][0].startswith("access-key-value/")
        assert download(url) == content
        assert all(query["X-Amz-Signature"][0] not in line for line in own_lines)
    assert (ALL_USERS, "READ") not in grants(client, f"{KEY}.mp4")
    cache_control = client.head_object(Bucket=BUCKET, Key=f"{KEY}.mp4")["CacheControl"]
    assert cache_control == "private, max-age=31536000, immutable"


def test_a_missing_bucket_names_its_setting(client: S3Client, endpoint_url: str, tmp_path: Path) -> None:
    client.delete_bucket(Bucket=BUCKET)
    with pytest.raises(UploadFailed, match="DIGITAL_OCEAN_BUCKET_NAME"):
        open_storage(settings_for(endpoint_url)).store(make_video(tmp_path), KEY)


def test_nothing_of_the_surroundings_is_used(
    client: S3Client, endpoint_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    garbage = tmp_path / "aws"
    garbage.write_text("[[not a config\n=")
    surroundings = {
        "AWS_PROFILE": "no-such-profile",
        "AWS_CONFIG_FILE": str(garbage),
        "AWS_SHARED_CREDENTIALS_FILE": str(garbage),
        "AWS_ACCESS_KEY_ID": "foreign-key",
        "AWS_SECRET_ACCESS_KEY": "foreign-secret",
        "AWS_SESSION_TOKEN": "foreign-token",
        "AWS_DEFAULT_REGION": "eu-north-1",
        "AWS_REGION": "eu-north-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_CA_BUNDLE": "/nonexistent",
        "REQUESTS_CA_BUNDLE": "/nonexistent",
        "AWS_DATA_PATH": "/nonexistent",
        "AWS_USE_FIPS_ENDPOINT": "true",
        "AWS_USE_DUALSTACK_ENDPOINT": "true",
        "AWS_RETRY_MODE": "nonsense",
        "AWS_MAX_ATTEMPTS": "nonsense",
        "AWS_DEFAULTS_MODE": "nonsense",
        "AWS_S3_US_EAST_1_REGIONAL_ENDPOINT": "nonsense",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "nonsense",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
        "NO_PROXY": "",
        "no_proxy": "",
    }
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    storage = open_storage(settings_for(endpoint_url, storage_acl="private"))
    delivery = storage.store(make_video(tmp_path), KEY)
    assert "/us-east-1/s3/aws4_request" in parse_qs(urlsplit(delivery.video_url).query)["X-Amz-Credential"][0]
    assert "foreign" not in delivery.video_url
    monkeypatch.undo()
    assert keys(client) == [f"{KEY}.jpg", f"{KEY}.mp4"]


class Multipart:
    """A storage that sends anything above 5 MiB in parts of 5 MiB, and what it called."""

    def __init__(self, endpoint_url: str) -> None:
        self.calls: list[str] = []
        place = place_of(endpoint_url, BUCKET)
        self.client = make_client(place, "key", "secret", total_max_attempts=1)
        self.storage: Storage = SpacesStorage(
            self.client, place, multipart_threshold_bytes=PART_BYTES, part_bytes=PART_BYTES
        )
        self.client.meta.events.register("before-call.s3", self._note)

    def _note(self, model: Any, **_: Any) -> None:
        self.calls.append(model.name)


@pytest.fixture
def multipart(client: S3Client, endpoint_url: str) -> Iterator[Multipart]:
    sender = Multipart(endpoint_url)
    yield sender
    sender.client.close()


def test_the_threshold_is_64_mib(client: S3Client, endpoint_url: str) -> None:
    assert MULTIPART_THRESHOLD_BYTES == 67_108_864


def test_at_the_threshold_one_put(client: S3Client, multipart: Multipart, tmp_path: Path) -> None:
    multipart.storage.store(make_video(tmp_path, b"v" * PART_BYTES, poster=None), KEY)
    assert multipart.calls == ["PutObject", "HeadObject"]


def test_above_the_threshold_parts(client: S3Client, multipart: Multipart, tmp_path: Path) -> None:
    content = b"a" * PART_BYTES + b"b" * PART_BYTES + b"c"
    video = make_video(tmp_path, content, poster=None)
    delivery = multipart.storage.store(video, KEY)
    assert multipart.calls == [
        "CreateMultipartUpload",
        *["UploadPart"] * 3,
        "CompleteMultipartUpload",
        "HeadObject",
    ]
    assert download(delivery.video_url) == content
    head = client.head_object(Bucket=BUCKET, Key=f"{KEY}.mp4")
    assert head["ContentType"] == "video/mp4"
    assert head["ContentDisposition"] == "inline"
    assert head["CacheControl"] == "public, max-age=31536000, immutable"
    assert head["Metadata"] == {"sha256": video.sha256}
    assert (ALL_USERS, "READ") in grants(client, f"{KEY}.mp4")
    assert "Uploads" not in client.list_multipart_uploads(Bucket=BUCKET)


@pytest.mark.parametrize(
    ("raised", "expected"), [(ConnectionResetError(), UploadFailed), (KeyboardInterrupt(), KeyboardInterrupt)]
)
@pytest.mark.parametrize("operation", ["UploadPart", "CompleteMultipartUpload"])
def test_a_multipart_upload_that_ends_badly_leaves_no_parts(
    client: S3Client,
    multipart: Multipart,
    tmp_path: Path,
    raised: BaseException,
    expected: type[BaseException],
    operation: str,
) -> None:
    uploads_seen: list[int] = []

    def fail(model: Any, params: Any, **_: Any) -> None:
        if operation == "UploadPart" and params["query_string"]["partNumber"] == 1:
            return
        uploads_seen.append(len(client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])))
        raise raised

    multipart.client.meta.events.register(f"before-call.s3.{operation}", fail)
    with pytest.raises(expected):
        multipart.storage.store(make_video(tmp_path, b"v" * (PART_BYTES + 1), poster=None), KEY)
    assert uploads_seen == [1]
    assert multipart.calls[-1] == "AbortMultipartUpload"
    assert "Uploads" not in client.list_multipart_uploads(Bucket=BUCKET)
    assert keys(client) == []


def test_a_large_video_that_changed_after_encoding_is_aborted(
    client: S3Client, multipart: Multipart, tmp_path: Path
) -> None:
    video = make_video(tmp_path, b"v" * (PART_BYTES + 1), poster=None)
    video.path.write_bytes(b"w" * (PART_BYTES + 1))
    with pytest.raises(UploadFailed, match="damaged"):
        multipart.storage.store(video, KEY)
    assert "Uploads" not in client.list_multipart_uploads(Bucket=BUCKET)
    assert keys(client) == []


def test_a_lost_answer_to_complete_is_not_a_failure(client: S3Client, multipart: Multipart, tmp_path: Path) -> None:
    # The server completes the upload, the worker never hears of it and asks again: NoSuchUpload, yet all is well.
    def complete_first(model: Any, params: Any, **_: Any) -> None:
        upload = client.list_multipart_uploads(Bucket=BUCKET)["Uploads"][0]
        upload_id = upload["UploadId"]
        listed = client.list_parts(Bucket=BUCKET, Key=upload["Key"], UploadId=upload_id)["Parts"]
        parts = [{"PartNumber": part["PartNumber"], "ETag": part["ETag"]} for part in listed]
        client.complete_multipart_upload(
            Bucket=BUCKET, Key=upload["Key"], UploadId=upload_id, MultipartUpload={"Parts": parts}
        )

    multipart.client.meta.events.register("before-call.s3.CompleteMultipartUpload", complete_first)
    content = b"v" * (PART_BYTES + 1)
    delivery = multipart.storage.store(make_video(tmp_path, content, poster=None), KEY)
    assert download(delivery.video_url) == content
    assert multipart.calls[-1] == "HeadObject"


def test_a_dropped_upload_is_a_failure(client: S3Client, multipart: Multipart, tmp_path: Path) -> None:
    def drop(model: Any, params: Any, **_: Any) -> None:
        upload = client.list_multipart_uploads(Bucket=BUCKET)["Uploads"][0]
        client.abort_multipart_upload(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])

    multipart.client.meta.events.register("before-call.s3.CompleteMultipartUpload", drop)
    with pytest.raises(UploadFailed):
        multipart.storage.store(make_video(tmp_path, b"v" * (PART_BYTES + 1), poster=None), KEY)
    assert keys(client) == []
