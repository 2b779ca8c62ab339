"""Signing files by C2PA, with the operator's certificate and key.

The library is c2pa-python. It neither draws thumbnails here, which would be most of a manifest's bytes, nor fetches
anything but a time stamp: a file's own manifest may name addresses.
"""

from __future__ import annotations

import io
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from c2pa import Builder, C2paError, C2paSignerInfo, Context, Signer
from c2pa import Settings as C2paSettings
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from PIL import Image

from worker.base.errors import SettingsError
from worker.base.version import VERSION
from worker.media.marks.provenance import GENERATOR, Origin, described, ingredient_id

# What signs, as C2PA 2.2 lists it (14.5.1): its own purpose, document signing, and e-mail protection.
PURPOSES = ("1.3.6.1.4.1.62558.2.1", "1.3.6.1.5.5.7.3.36", "1.3.6.1.5.5.7.3.4")
LEAST_RSA_BITS = 2048
_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
_OFFLINE = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
}


class NoTimeStamp(Exception):
    """The time stamp authority did not answer, not in time, or not with a time stamp."""


def offline(**more: Any) -> Context:
    """The library's settings as this worker uses them, and `more` sections of them."""
    return Context(settings=C2paSettings.from_dict({**_OFFLINE, **more}))


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A certificate chain and the key of its first certificate, as PEM; both fit together and to C2PA."""

    chain: bytes
    key: bytes = field(repr=False)
    algorithm: str
    expires_at: datetime

    @classmethod
    def load(cls, chain: str, key: str, *, now: datetime | None = None) -> SigningKey:
        """From what C2PA_CERT_CHAIN and C2PA_PRIVATE_KEY hold: PEM, or the path of a file with it.

        Raises SettingsError with every problem; none holds a path or a part of the key.
        """
        problems: list[str] = []
        certificates, private = _certificates(chain, problems), _private_key(key, problems)
        if certificates:
            problems += [f"C2PA_CERT_CHAIN: {each}" for each in _faults(certificates, now or datetime.now(UTC))]
        algorithm = None if private is None else _algorithm(private)
        if private is not None and algorithm is None:
            problems.append("C2PA_PRIVATE_KEY: use an EC key of P-256, P-384 or P-521, Ed25519, or RSA of 2048 bits")
        if certificates and private is not None and certificates[0].public_key() != private.public_key():
            problems.append("C2PA_PRIVATE_KEY: it is not the key of the first certificate of C2PA_CERT_CHAIN")
        if problems or private is None or algorithm is None:
            raise SettingsError(problems)
        pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        made = cls(
            b"".join(each.public_bytes(pem) for each in certificates),
            private.private_bytes(pem, pkcs8, serialization.NoEncryption()),
            algorithm,
            certificates[0].not_valid_after_utc,
        )
        made.try_out()
        return made

    def try_out(self, tsa_url: str | None = None, *, limit_s: float = 5.0) -> None:
        """Sign a small picture. Raises SettingsError where the library refuses chain or key; NoTimeStamp."""
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder, "probe.jpg")
            Image.new("RGB", (8, 8)).save(picture)
            try:
                signed, nobody = picture.with_suffix(".signed"), Origin(model="none")
                self.sign(picture, signed, "image/jpeg", nobody, tsa_url=tsa_url, limit_s=limit_s)
            except C2paError as failure:
                raise SettingsError([f"C2PA_CERT_CHAIN: nothing can be signed with it ({failure})"]) from failure

    def sign(
        self,
        source: Path,
        target: Path,
        content_type: str,
        origin: Origin,
        *,
        tsa_url: str | None = None,
        limit_s: float = 5.0,
    ) -> None:
        """Write the file `source` with a manifest to `target`.

        With `tsa_url` the signature gets a time stamp: raises NoTimeStamp where there is none within `limit_s`, and
        then `target` may still be written for half a minute. Raises C2paError for all else, and OSError.
        """
        if tsa_url is None:
            self._sign(source, target, content_type, origin, None)
            return
        failed: list[C2paError | OSError] = []

        def work() -> None:
            try:
                self._sign(source, target, content_type, origin, tsa_url)
            except (C2paError, OSError) as failure:
                failed.append(failure)

        # The library waits for 30 s, and cannot be interrupted.
        thread = threading.Thread(target=work, name="time-stamp", daemon=True)
        thread.start()
        thread.join(limit_s)
        if thread.is_alive():
            raise NoTimeStamp(f"it did not answer within {limit_s:g} s")
        if failed:
            raise NoTimeStamp("it sent no time stamp") from failed[0]

    def _sign(self, source: Path, target: Path, content_type: str, origin: Origin, tsa_url: str | None) -> None:
        address = None if tsa_url is None else tsa_url.encode()
        with (
            source.open("rb") as given,
            target.open("w+b") as written,
            offline() as context,
            Signer.from_info(C2paSignerInfo(self.algorithm, self.chain, self.key, address)) as signer,
            Builder(manifest(origin), context=context) as builder,
        ):
            for archive in filter(None, origin.ingredients):
                builder.add_ingredient_from_archive(io.BytesIO(archive))
            builder.sign(signer, content_type, given, written)


def manifest(origin: Origin) -> dict[str, Any]:
    """The claim: made by this worker and model, out of nothing, or out of what the caller gave."""
    agent = {"name": GENERATOR, "version": VERSION, "model": origin.model}
    made = {"digitalSourceType": origin.uri, "softwareAgent": agent}
    actions: list[dict[str, Any]] = [{"action": "c2pa.created", **made}]
    unread: list[dict[str, str]] = []
    if origin.composite:
        archives = origin.ingredients or (b"",)
        used = [{"parameters": {"ingredientIds": [ingredient_id(number)]}} for number in range(len(archives))]
        placed = ({"action": "c2pa.placed", **other} for other in used[1:])
        actions = [{"action": "c2pa.opened", **used[0]}, *placed, {"action": "c2pa.edited", **made}]
        unread = [described(number) for number, archive in enumerate(archives) if not archive]
    return {
        "claim_generator_info": [{"name": GENERATOR, "version": VERSION}],
        "instance_id": origin.instance_id,
        "ingredients": unread,
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}],
    }


def _text(value: str) -> bytes:
    """PEM is taken as it is, or with the line ends written as \\n that some consoles make of it. Raises OSError."""
    return value.replace("\\n", "\n").encode() if "-----BEGIN" in value else Path(value).read_bytes()


def _certificates(chain: str, problems: list[str]) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_text(chain))
    except (OSError, ValueError):
        problems.append("C2PA_CERT_CHAIN: neither certificates in PEM nor the path of a file with them")
    return []


def _private_key(key: str, problems: list[str]) -> PrivateKeyTypes | None:
    try:
        return serialization.load_pem_private_key(_text(key), password=None)
    except TypeError:
        problems.append("C2PA_PRIVATE_KEY: it has a passphrase: write it without one (openssl pkey -in KEY -out KEY)")
    except (OSError, ValueError):
        problems.append("C2PA_PRIVATE_KEY: neither a private key in PEM nor the path of a file with one")
    return None


def _algorithm(key: PrivateKeyTypes) -> str | None:
    """C2PA's name of what signs with such a key."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return _CURVES.get(key.curve.name)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    return "ps256" if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= LEAST_RSA_BITS else None


def _faults(certificates: list[x509.Certificate], now: datetime) -> Iterator[str]:
    """What keeps the chain from signing, in words."""
    signer = certificates[0]
    if now < signer.not_valid_before_utc:
        yield f"the certificate is not valid before {signer.not_valid_before_utc:%Y-%m-%d}"
    if now > signer.not_valid_after_utc:
        yield f"the certificate expired on {signer.not_valid_after_utc:%Y-%m-%d}: renew it"
    if signer.issuer == signer.subject:
        yield "the first certificate is its own issuer: C2PA wants one that an authority issued"
    if _is_authority(signer):
        yield "the first certificate is an authority's: put the signer's own first"
    if not _may_sign(signer):
        yield "the first certificate may not sign: its key usage lacks digitalSignature"
    if not _has_purpose(signer):
        yield f"the first certificate is for another purpose: its extended key usage needs one of {', '.join(PURPOSES)}"
    for number, (certificate, issuer) in enumerate(pairwise(certificates), 1):
        try:
            certificate.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            yield f"certificate {number} was not issued by certificate {number + 1}: put them in order"


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _may_sign(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    except x509.ExtensionNotFound:
        return False


def _has_purpose(certificate: x509.Certificate) -> bool:
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return any(usage.dotted_string in PURPOSES for usage in usages)
