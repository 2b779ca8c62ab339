"""Endpoints as people write them, and the URLs that follow from them: no network."""

from __future__ import annotations

import pytest

from worker.base.errors import SettingsError
from worker.delivery.storage.spaces_client import make_client
from worker.delivery.storage.spaces_place import Place, place_of, public_url

SPACES = Place("https://nyc3.digitaloceanspaces.com", "videos", "nyc3", path_style=False)
KEY = "videos/2026-11-21/abc-123/0.mp4"


@pytest.mark.parametrize(
    "endpoint_url",
    [
        "https://nyc3.digitaloceanspaces.com",
        "https://nyc3.digitaloceanspaces.com/",
        "  https://nyc3.digitaloceanspaces.com//  ",
        "https://NYC3.DigitalOceanSpaces.com",
        "https://videos.nyc3.digitaloceanspaces.com",
        "https://videos.nyc3.digitaloceanspaces.com/",
        "https://nyc3.digitaloceanspaces.com/videos",
        "https://nyc3.digitaloceanspaces.com/videos/some/folder",
        "https://nyc3.digitaloceanspaces.com?x=1#top",
        "https://user:word@nyc3.digitaloceanspaces.com",
        "https://videos.nyc3.cdn.digitaloceanspaces.com",
        "https://nyc3.cdn.digitaloceanspaces.com",
    ],
)
def test_every_way_to_write_a_spaces_endpoint_becomes_one(endpoint_url: str) -> None:
    assert place_of(endpoint_url, "videos") == SPACES


def test_a_bucket_called_like_the_region_stays() -> None:
    place = place_of("https://nyc3.digitaloceanspaces.com", "nyc3")
    assert place.endpoint_url == "https://nyc3.digitaloceanspaces.com"
    assert place.bucket_url == "https://nyc3.nyc3.digitaloceanspaces.com"


def test_the_named_bucket_wins_over_that_of_the_endpoint() -> None:
    assert place_of("https://other.nyc3.digitaloceanspaces.com", "videos") == SPACES


@pytest.mark.parametrize(
    ("endpoint_url", "bucket", "expected_endpoint", "expected_base"),
    [
        ("https://s3.example.com", "videos", "https://s3.example.com", "https://videos.s3.example.com"),
        ("https://videos.s3.example.com", "videos", "https://s3.example.com", "https://videos.s3.example.com"),
        ("https://videos.s3-eu.example.com", "videos", "https://s3-eu.example.com", "https://videos.s3-eu.example.com"),
        ("https://minio.example.com", "minio", "https://minio.example.com", "https://minio.minio.example.com"),
        ("https://gw.example.com/s3/", "videos", "https://gw.example.com/s3", "https://videos.gw.example.com/s3"),
        ("https://gw.example.com/videos/", "videos", "https://gw.example.com", "https://videos.gw.example.com"),
        ("https://gw.example.com:8443", "videos", "https://gw.example.com:8443", "https://videos.gw.example.com:8443"),
        ("http://127.0.0.1:9000/", "videos", "http://127.0.0.1:9000", "http://127.0.0.1:9000/videos"),
        ("http://127.0.0.1:9000/videos", "videos", "http://127.0.0.1:9000", "http://127.0.0.1:9000/videos"),
        ("http://[::1]:9000", "videos", "http://[::1]:9000", "http://[::1]:9000/videos"),
        ("http://localhost:9000", "videos", "http://localhost:9000", "http://localhost:9000/videos"),
        ("http://s3.localhost:9000", "videos", "http://s3.localhost:9000", "http://s3.localhost:9000/videos"),
        ("http://minio:9000", "videos", "http://minio:9000", "http://minio:9000/videos"),
        ("https://s3.example.com", "my.videos", "https://s3.example.com", "https://s3.example.com/my.videos"),
    ],
)
def test_other_servers(endpoint_url: str, bucket: str, expected_endpoint: str, expected_base: str) -> None:
    place = place_of(endpoint_url, bucket)
    assert (place.endpoint_url, place.bucket_url, place.region) == (expected_endpoint, expected_base, "us-east-1")


@pytest.mark.parametrize(
    ("endpoint_url", "bucket"),
    [
        ("https://videos.nyc3.digitaloceanspaces.com", "videos"),
        ("https://nyc3.digitaloceanspaces.com", "my.videos"),
        ("https://gw.example.com/s3", "videos"),
        ("http://minio:9000", "videos"),
        ("http://[::1]:9000", "videos"),
    ],
)
@pytest.mark.parametrize("key", [KEY, "videos/2026-11-21/a+b c%?/0.mp4"])
def test_boto3_uses_the_same_address(endpoint_url: str, bucket: str, key: str) -> None:
    place = place_of(endpoint_url, bucket)
    client = make_client(place, "key", "secret")
    signed = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key})
    client.close()
    assert signed.partition("?")[0] == public_url(place.bucket_url, key)


def test_region_setting_wins() -> None:
    assert place_of("https://nyc3.digitaloceanspaces.com", "videos", "ams3").region == "ams3"
    assert place_of("https://s3.example.com", "videos", "eu-central-1").region == "eu-central-1"


@pytest.mark.parametrize(
    "base_url", ["https://cdn.example.com", "https://cdn.example.com/", "https://cdn.example.com//"]
)
def test_public_url_tolerates_trailing_slashes(base_url: str) -> None:
    assert public_url(base_url, KEY) == f"https://cdn.example.com/{KEY}"


def test_public_url_keeps_a_path_and_quotes_the_key() -> None:
    assert (
        public_url("https://cdn.example.com/media/", "a b/c?d.mp4") == "https://cdn.example.com/media/a%20b/c%3Fd.mp4"
    )


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        place_of("https://:99999999", "no/slash", "no region")
    assert [line.partition(":")[0] for line in caught.value.problems] == [
        "DIGITAL_OCEAN_ENDPOINT_URL",
        "DIGITAL_OCEAN_BUCKET_NAME",
        "DIGITAL_OCEAN_REGION",
    ]
