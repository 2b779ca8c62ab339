"""THIRD_PARTY_NOTICES.md names everything that the image carries, and every licence comes from somewhere."""

from __future__ import annotations

import email.message
import hashlib
import re
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest

from builder import notices
from builder.audit import locked

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "THIRD_PARTY_NOTICES.md").read_text(encoding="utf-8")
# Of the text at apache.org/licenses/LICENSE-2.0.txt.
APACHE_SHA256 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


class Package(Distribution):
    """A distribution that holds nothing but the given metadata and file names."""

    def __init__(self, files: tuple[str, ...] = (), **fields: str) -> None:
        self._files = files
        self._metadata = email.message.Message()
        for name, value in {"Name": "some-package", **fields}.items():
            self._metadata[name.replace("_", "-")] = value

    @property
    def metadata(self) -> Any:
        return self._metadata

    @property
    def files(self) -> Any:
        return [Path(name) for name in self._files]

    def read_text(self, filename: str) -> str | None:
        return None

    def locate_file(self, path: Any) -> Any:
        raise NotImplementedError


@pytest.mark.slow  # `make check` runs the generator
def test_the_page_is_fresh() -> None:
    assert notices.main(["--check"]) == 0, "run make docs"


@pytest.mark.parametrize("lock", [*notices.INSTALLED, notices.CUDA_LOCK])
def test_every_locked_package_has_its_version_and_licence(lock: str) -> None:
    pins, problems = locked((lock,))
    assert problems == []
    assert pins
    for name, version in pins.items():
        (licence,) = re.findall(rf"^\| `{re.escape(name)}` \| {re.escape(version)} \| (.+) \|$", PAGE, re.MULTILINE)
        assert licence


def test_what_the_tests_need_is_not_in_the_image_and_not_on_the_page() -> None:
    assert "`pytest`" not in PAGE
    assert "`mypy`" not in PAGE


def test_the_licence_is_the_whole_of_apache_2() -> None:
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_SHA256


def test_that_ffmpeg_is_under_the_gpl_is_said() -> None:
    assert notices.ffmpeg_version() in PAGE
    assert "GNU General Public License, version 3" in PAGE


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ({"License_Expression": "MIT AND BSD-3-Clause", "License": "old words"}, "MIT AND BSD-3-Clause"),
        ({"License": "Apache 2.0 License"}, "Apache-2.0"),
        ({"License": "BSD-2-Clause"}, "BSD-2-Clause"),
        ({"Classifier": "License :: OSI Approved :: MIT License"}, "MIT"),
        ({"Name": "Prompt_Toolkit", "Classifier": "License :: OSI Approved :: BSD License"}, "BSD-3-Clause"),
    ],
    ids=str,
)
def test_a_licence_is_read_from_the_metadata(fields: dict[str, str], licence: str) -> None:
    assert notices.licence_of(Package(**fields)) == licence


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"License": "BSD"},
        {"License": "UNKNOWN"},
        {"License": "Permission is hereby granted, free of charge"},
        {"Classifier": "License :: OSI Approved :: BSD License"},
    ],
    ids=str,
)
def test_a_licence_that_nobody_states_is_an_error_that_names_the_package(fields: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="some-package"):
        notices.licence_of(Package(**fields))


def test_a_licence_file_is_seen() -> None:
    assert notices.has_licence_file(Package(("a.dist-info/licenses/LICENSE.txt",)))
    assert notices.has_licence_file(Package(("a.dist-info/COPYING",)))
    assert not notices.has_licence_file(Package(("a/licensing.py", "a/__init__.py")))


def test_a_cuda_package_without_a_licence_is_an_error() -> None:
    with pytest.raises(ValueError, match="nvidia-new"):
        notices.cuda_rows({**dict.fromkeys(notices.CUDA, "1"), "nvidia-new": "2"})
    with pytest.raises(ValueError, match="triton"):
        notices.cuda_rows({name: "1" for name in notices.CUDA if name != "triton"})


@pytest.mark.slow
def test_check_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notices, "TARGET", tmp_path / "THIRD_PARTY_NOTICES.md")
    assert notices.main(["--check"]) == 1
    assert "out of date" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert notices.main([]) == 0
    assert notices.main(["--check"]) == 0
