"""The Spaces storage over TLS, where real servers reject what they take over plain HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kits.certificates import self_signed
from tests.kits.delivery import KEY, MIB, make_video
from tests.kits.s3_double import BUCKET, Double, serving
from worker.base.errors import UploadFailed
from worker.delivery.storage.spaces import SpacesStorage
from worker.delivery.storage.spaces_client import make_client
from worker.delivery.storage.spaces_place import place_of


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return self_signed("127.0.0.1", tmp_path_factory.mktemp("tls") / "double.pem")


@pytest.fixture
def double(certificate: Path) -> Iterator[Double]:
    with serving(certificate) as running:
        yield running


def test_no_checksum_trailers_over_tls(double: Double, certificate: Path, tmp_path: Path) -> None:
    place = place_of(double.endpoint_url, BUCKET)
    client = make_client(place, "key", "secret", ca_bundle=certificate)
    storage = SpacesStorage(client, place, multipart_threshold_bytes=MIB, part_bytes=MIB)
    storage.store(make_video(tmp_path, b"small", None), KEY)
    storage.store(make_video(tmp_path, b"L" * (MIB + 1), None), KEY)
    client.close()
    assert double.operations() == ["put", "head", "create", "part", "part", "complete", "head"]
    for _, headers in double.seen:
        assert "aws-chunked" not in headers.get("content-encoding", "")
        assert "TRAILER" not in headers.get("x-amz-content-sha256", "")
        assert "transfer-encoding" not in headers
        assert not [
            name for name in headers if name.startswith(("x-amz-checksum", "x-amz-trailer", "x-amz-sdk-checksum"))
        ]
    puts = [headers for operation, headers in double.seen if operation in ("put", "part")]
    assert all("content-length" in headers and "content-md5" in headers for headers in puts)


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
def test_an_untrusted_certificate_stays_untrusted(
    double: Double, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, str(certificate))
    place = place_of(double.endpoint_url, BUCKET)
    client = make_client(place, "key", "secret", total_max_attempts=1)
    with pytest.raises(UploadFailed, match="certificate"):
        SpacesStorage(client, place).store(make_video(tmp_path, b"small", None), KEY)
    client.close()
    assert double.seen == []
