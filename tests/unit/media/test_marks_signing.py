"""The certificate and its key: what may sign, what is refused, and time stamps that do not come."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tests.kits import c2pa_kit
from tests.kits.c2pa_kit import SERVES, Authority, Signer
from worker.base.errors import SettingsError
from worker.base.settings import Settings
from worker.media.marks.marker import Marker
from worker.media.marks.signing import LEAST_RSA_BITS, NoTimeStamp, SigningKey

ROOT = Authority()
GOOD = ROOT.issue()


def problems_of(signer: Signer) -> str:
    with pytest.raises(SettingsError) as refused:
        SigningKey.load(signer.chain, signer.key)
    return "\n".join(refused.value.problems)


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (ec.generate_private_key(ec.SECP256R1()), "es256"),
        (ec.generate_private_key(ec.SECP384R1()), "es384"),
        (ec.generate_private_key(ec.SECP521R1()), "es512"),
        (ed25519.Ed25519PrivateKey.generate(), "ed25519"),
        (rsa.generate_private_key(65537, LEAST_RSA_BITS), "ps256"),
    ],
)
def test_every_kind_of_key_that_c2pa_knows_signs(key: c2pa_kit.Key, algorithm: str) -> None:
    signer = ROOT.issue(key=key)
    assert SigningKey.load(signer.chain, signer.key).algorithm == algorithm


def test_pem_may_be_in_a_file_or_have_its_line_ends_written_out(tmp_path: Path) -> None:
    for name, text in (("chain.pem", GOOD.chain), ("key.pem", GOOD.key)):
        (tmp_path / name).write_text(text)
    by_path = SigningKey.load(str(tmp_path / "chain.pem"), str(tmp_path / "key.pem"))
    in_one_line = SigningKey.load(GOOD.chain.replace("\n", "\\n"), GOOD.key.replace("\n", "\\n"))
    assert by_path == in_one_line == SigningKey.load(GOOD.chain, GOOD.key)
    assert GOOD.key not in repr(by_path)


@pytest.mark.parametrize(
    ("signer", "says"),
    [
        (Signer("nowhere.pem", GOOD.key), "C2PA_CERT_CHAIN: neither certificates"),
        (Signer(GOOD.chain, "nowhere.pem"), "C2PA_PRIVATE_KEY: neither a private key"),
        (Signer(GOOD.chain, GOOD.chain), "C2PA_PRIVATE_KEY: neither a private key"),
        (Signer(GOOD.chain, ROOT.issue().key), "not the key of the first certificate"),
        (Signer(GOOD.chain, c2pa_kit.private_pem(ec.generate_private_key(ec.SECP256R1()), b"pass")), "passphrase"),
        (ROOT.issue(key=ec.generate_private_key(ec.SECP256K1())), "use an EC key"),
        (ROOT.issue(key=rsa.generate_private_key(65537, 1024)), "use an EC key"),
        (ROOT.issue(days=-1), "expired on"),
        (ROOT.issue(signs=False), "key usage lacks digitalSignature"),
        (ROOT.issue(purpose=SERVES), "extended key usage needs one of"),
        (ROOT.issue(purpose=None), "extended key usage needs one of"),
        (ROOT.issue(is_authority=True), "is an authority's"),
        (Signer(ROOT.root, GOOD.key), "is its own issuer"),
        (Signer(GOOD.chain.removesuffix(ROOT.root) + Authority().root, GOOD.key), "was not issued by certificate 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_sign_is_refused_with_the_variable_and_the_reason(signer: Signer, says: str) -> None:
    found = problems_of(signer)
    assert says in found
    assert "nowhere.pem" not in found
    assert "PRIVATE KEY-----" not in found


def test_a_certificate_may_sign_up_to_its_last_moment() -> None:
    key = SigningKey.load(GOOD.chain, GOOD.key)
    assert SigningKey.load(GOOD.chain, GOOD.key, now=key.expires_at).expires_at == key.expires_at


def test_all_problems_are_reported_at_once() -> None:
    found = problems_of(Signer(ROOT.issue(days=-1, purpose=SERVES).chain, ROOT.issue().key))
    assert all(part in found for part in ("expired", "extended key usage", "not the key"))


@pytest.mark.parametrize("missing", ["C2PA_CERT_CHAIN", "C2PA_PRIVATE_KEY"])
def test_one_of_the_two_settings_alone_is_refused(missing: str) -> None:
    given = {"c2pa_cert_chain": GOOD.chain, "c2pa_private_key": GOOD.key}
    del given[missing.lower()]
    with pytest.raises(SettingsError, match=f"{missing} is not set"):
        Marker.from_settings(Settings(**given))


def test_marks_that_are_off_need_no_key_and_read_none() -> None:
    assert not Marker.from_settings(Settings(ai_mark=False, c2pa_cert_chain="nowhere.pem")).is_on


def test_the_key_is_a_secret_of_the_log() -> None:
    assert GOOD.key in Settings(c2pa_private_key=GOOD.key).secret_values()


@pytest.mark.parametrize(
    ("url", "says"), [("http://127.0.0.1:9", "sent no time stamp"), (None, "did not answer within 0.2 s")]
)
def test_a_time_stamp_authority_that_does_not_answer_is_an_error_of_its_own(url: str | None, says: str) -> None:
    with c2pa_kit.silent() as silent, pytest.raises(NoTimeStamp, match=says):
        SigningKey.load(GOOD.chain, GOOD.key).try_out(url or silent, limit_s=5 if url else 0.2)
