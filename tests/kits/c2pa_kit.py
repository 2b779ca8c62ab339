"""An authority of the tests' own: certificates that may sign by C2PA, or may not, and RFC 3161 time stamps."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.kits.loopback import serving

SIGNS, STAMPS, SERVES = (
    ExtendedKeyUsageOID.EMAIL_PROTECTION,
    ExtendedKeyUsageOID.TIME_STAMPING,
    ExtendedKeyUsageOID.SERVER_AUTH,
)
Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
_PEM = serialization.Encoding.PEM
_USES = (
    *("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("encipher_only", "decipher_only"),
)
_TSA = """\
[tsa]
default_tsa = ours
[ours]
serial = serial
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256,sha384,sha512
ess_cert_id_alg = sha256
"""


@dataclass(frozen=True, slots=True)
class Signer:
    """PEM, as the settings take it; the chain ends with the root."""

    chain: str
    key: str


class Authority:
    """Issues certificates under a root of its own, `root` as PEM."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named("Test Root")
        builder = _builder(self._name, self._name, self._key, timedelta(days=3650))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self._root = builder.add_extension(_usage(signs=False, issues=True), critical=True).sign(
            self._key, hashes.SHA256()
        )
        self.root = self._root.public_bytes(_PEM).decode()

    def issue(
        self,
        *,
        key: Key | None = None,
        purpose: x509.ObjectIdentifier | None = SIGNS,
        days: float = 365,
        signs: bool = True,
        is_authority: bool = False,
    ) -> Signer:
        """A certificate that is good for `days` from now; less than 0 has expired."""
        key = ec.generate_private_key(ec.SECP256R1()) if key is None else key
        builder = _builder(_named("Test Signer"), self._name, key, timedelta(days=days))
        builder = builder.add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        builder = builder.add_extension(_usage(signs=signs, issues=is_authority), critical=True)
        if purpose is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=True)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        made = builder.add_extension(issuer, critical=False).sign(self._key, hashes.SHA256())
        return Signer(made.public_bytes(_PEM).decode() + self.root, private_pem(key))

    @contextmanager
    def time_stamps(self) -> Iterator[str]:
        """The address of a time stamp authority, for the length of the block; skips the test without openssl."""
        openssl = shutil.which("openssl")
        if openssl is None:
            pytest.skip("there is no openssl, which makes the time stamps of this test")
        signer = self.issue(purpose=STAMPS)
        with tempfile.TemporaryDirectory() as name:
            home = Path(name)
            for file, text in {"cnf": _TSA, "serial": "01\n", "cert": signer.chain, "key": signer.key}.items():
                (home / file).write_text(text)
            (home / "root").write_text(self.root)
            command = [openssl, "ts", "-reply", "-config", "cnf", "-queryfile", "query", "-signer", "cert"]
            command += ["-inkey", "key", "-chain", "root", "-out", "reply"]

            class Stamping(BaseHTTPRequestHandler):
                def do_POST(self) -> None:
                    (home / "query").write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
                    subprocess.run(command, cwd=home, check=True, capture_output=True)
                    reply = (home / "reply").read_bytes()
                    self.send_response(200)
                    self.send_header("Content-Type", "application/timestamp-reply")
                    self.send_header("Content-Length", str(len(reply)))
                    self.end_headers()
                    self.wfile.write(reply)

                def log_message(self, format: str, *args: object) -> None:
                    pass

            with serving(ThreadingHTTPServer(("127.0.0.1", 0), Stamping)) as url:
                yield url


@contextmanager
def silent() -> Iterator[str]:
    """A time stamp authority that takes requests and answers none until the end of the block."""
    done = threading.Event()

    class Silent(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            done.wait(60)
            self.close_connection = True

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Silent)) as url:
        try:
            yield url
        finally:
            done.set()


def private_pem(key: Key, passphrase: bytes | None = None) -> str:
    hidden = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, hidden).decode()


def _named(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Videos Ltd"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _builder(subject: x509.Name, issuer: x509.Name, key: Key, life: timedelta) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(min(now, now + life) - timedelta(1))
    builder = builder.not_valid_after(now + life)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)


def _usage(*, signs: bool, issues: bool) -> x509.KeyUsage:
    return x509.KeyUsage(digital_signature=signs, key_cert_sign=issues, crl_sign=issues, **dict.fromkeys(_USES, False))
