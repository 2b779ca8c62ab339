"""`verify`: its exit status, what it prints, and what it makes of a changed file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kits.c2pa_kit import Authority
from tests.kits.cli_kit import command
from tests.unit.media.test_marks import KEY, ORIGIN, ROOT, encoded
from worker.media.marks.marker import Marker
from worker.request.values import Output

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return encoded(tmp_path, Output()).path


@pytest.fixture
def signed(file: Path) -> Path:
    Marker(key=KEY).mark_file(file, "video/mp4", ORIGIN)
    return file


def anchors(folder: Path, authority: Authority) -> str:
    (folder / "anchors.pem").write_text(authority.root)
    return str(folder / "anchors.pem")


def test_a_signed_file(capsys: Capture, tmp_path: Path, signed: Path) -> None:
    done = command(capsys, "verify", str(signed), "--anchors", anchors(tmp_path, ROOT))
    assert done.status == 0
    assert done.out.splitlines()[:4] == [
        "result     signed, unchanged, and the signer is trusted",
        "origin     made by AI (trainedAlgorithmicMedia)",
        "signer     Test Signer of Videos Ltd",
        "time       no time stamp",
    ]


def test_the_exit_status_says_what_was_found(capsys: Capture, tmp_path: Path, file: Path) -> None:
    assert command(capsys, "verify", str(file)).status == 3
    Marker().mark_file(file, "video/mp4", ORIGIN)
    done = command(capsys, "verify", str(file))
    assert (done.status, "not signed" in done.out) == (3, True)
    Marker(key=KEY).mark_file(file, "video/mp4", ORIGIN)
    assert command(capsys, "verify", str(file)).status == 0
    done = command(capsys, "verify", str(file), "--anchors", anchors(tmp_path, Authority()))
    assert (done.status, "NOT trusted" in done.out) == (4, True)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    done = command(capsys, "verify", str(file))
    assert (done.status, "CHANGED" in done.out) == (1, True)


def test_json_has_every_value(capsys: Capture, file: Path) -> None:
    instance_id = Marker(key=KEY).mark_file(file, "video/mp4", ORIGIN).instance_id
    done = command(capsys, "verify", str(file), "--json")
    values = json.loads(done.out)
    assert (values["state"], values["signer"], values["instance_id"]) == ("signed", "Test Signer", instance_id)


@pytest.mark.parametrize(
    ("words", "says"),
    [(("nowhere.mp4",), "nowhere.mp4: No such file"), (("FILE", "--anchors", "nowhere.pem"), "--anchors: nowhere.pem")],
)
def test_a_file_that_is_not_there_is_wrong_use(
    capsys: Capture, signed: Path, words: tuple[str, ...], says: str
) -> None:
    done = command(capsys, "verify", *(str(signed) if word == "FILE" else word for word in words))
    assert (done.status, says in done.err) == (2, True)
