"""Secrets stay out of texts, webhook secrets have one form, and the allowlist takes only what it can mean."""

from __future__ import annotations

import base64

import pytest

from tests.kits.settings_kit import problems, storage_env, with_env
from worker.base.settings import Settings, load


def secret_of(length: int, sign: bytes = b"k") -> str:
    return "whsec_" + base64.b64encode(sign * length).decode()


SECRET, OTHER_SECRET = secret_of(24), secret_of(24, b"o")


# --- secrets


def test_secrets_are_in_no_text_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    storage_env(monkeypatch)
    loaded = with_env(
        monkeypatch, HF_TOKEN="hf_hidden", RUNPOD_API_KEY="rp_hidden", WEBHOOK_SECRET=f"{SECRET} {OTHER_SECRET}"
    )
    hidden = {"hf_hidden", "rp_hidden", "ACCESS-KEY-1", "SECRET-KEY-1", SECRET, OTHER_SECRET}
    assert set(loaded.secret_values()) == hidden
    for text in (repr(loaded), str(loaded), str(loaded.model_dump()), loaded.model_dump_json()):
        assert not [secret for secret in hidden if secret in text]


def test_every_secret_field_is_among_the_values_to_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = [name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)]
    assert len(fields) == 7
    values = {name: SECRET if name == "webhook_secret" else f"value-of-{name}" for name in fields}
    assert set(Settings(**values).secret_values()) == set(values.values())  # type: ignore[arg-type]


def test_a_bad_secret_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = problems(monkeypatch, WEBHOOK_SECRET="hunter2!hunter2!")
    assert "hunter2" not in line
    assert "whsec_" in line


@pytest.mark.parametrize(
    "text",
    [
        SECRET,
        f"{SECRET} {OTHER_SECRET}",
        f"  {SECRET}\t{OTHER_SECRET} ",
        secret_of(24),
        secret_of(25),
        secret_of(26),
        secret_of(64),
        secret_of(24, b"\xfb"),  # with + and / in its base64
    ],
)
def test_webhook_secrets_of_the_contract(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    assert with_env(monkeypatch, WEBHOOK_SECRET=text).webhook_secrets == tuple(text.split())


@pytest.mark.parametrize(
    "text",
    [
        " ",
        "hunter2",
        "my secret",
        "whsec_",
        "whsec_a",
        "whsec_####",
        "not base64!",
        "whsec_YWJj",
        secret_of(23),
        secret_of(65),
        SECRET.removeprefix("whsec_"),
        SECRET.upper(),
        secret_of(25).rstrip("="),
        secret_of(24, b"\xfb").replace("+", "-"),
        secret_of(24) + "=",
        f"{SECRET} whsec_",
        f"{SECRET} {secret_of(23)}",
        f"{SECRET},{SECRET}",
    ],
)
def test_any_other_webhook_secret_stops_the_worker(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (line,) = problems(monkeypatch, WEBHOOK_SECRET=text)
    assert line.startswith("WEBHOOK_SECRET: each secret must be whsec_ and base64 of 24 to 64 bytes")


def test_no_webhook_secret_is_no_secret() -> None:
    assert load().webhook_secrets == ()
    assert load().secret_values() == ()


# --- the allowlist


@pytest.mark.parametrize(
    "entry",
    [
        "localhost",
        "minio.internal",
        "minio.internal:9000",
        "a_b.example-1.com:65535",
        "host:1",
        "10.0.0.0/8",
        "10.1.2.3/8",
        "127.0.0.1",
        "127.0.0.1:8080",
        "fd00::/8",
        "::1",
        "[::1]",
        "[::1]:8080",
        "fe80::1:2:3",
    ],
)
def test_allowlist_entries(monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    assert with_env(monkeypatch, PRIVATE_URL_ALLOWLIST=entry).private_url_allowlist == (entry,)


@pytest.mark.parametrize(
    "entry",
    [
        "http://localhost",
        "localhost/path",
        "*.example.com",
        "a b",
        "-a.com",
        "a-.com",
        "a..b",
        "host:",
        "host:0",
        "host:65536",
        "host:-1",
        "host:port",
        "host:²",
        ":80",
        "[::1",
        "::1]",
        "[::1]:0",
        "[localhost]",
        "[localhost]:80",
        "10.0.0.0/33",
        "10.0.0.0/x",
        "fd00::/129",
        "user@host",
        "host?x",
    ],
)
def test_allowlist_entries_that_are_none(monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    (line,) = problems(monkeypatch, PRIVATE_URL_ALLOWLIST=f"localhost,{entry}")
    assert line.startswith("PRIVATE_URL_ALLOWLIST: ")
    assert repr(entry) in line


def test_blanks_in_the_allowlist_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_env(monkeypatch, PRIVATE_URL_ALLOWLIST=" , a ,, b ,").private_url_allowlist == ("a", "b")
    assert with_env(monkeypatch, PRIVATE_URL_ALLOWLIST=",").private_url_allowlist == ()
