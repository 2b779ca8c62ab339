"""The Spaces storage over TLS, where real servers reject what they take over plain HTTP."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.kits.delivery import make_video
from tests.kits.s3_double import Double, serving
from worker.base.errors import UploadFailed
from worker.delivery.storage.spaces import SpacesStorage
from worker.delivery.storage.spaces_client import make_client
from worker.delivery.storage.spaces_place import place_of

BUCKET = "videos-bucket"
KEY = "videos/2026-11-21/abc-123/0"
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that signs itself, and its key, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "storage double")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "double.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return path


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
