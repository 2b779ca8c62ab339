"""Release notes are the changelog's own words for that version."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from builder import release_notes

CHANGELOG = """# Changelog

All notable changes.

## [Unreleased]

### Added

- Something new.

## [0.2.0] - 2026-12-01

### Fixed

- A thing.

### Added

- Another.

## [0.1.0] - 2026-11-21

[0.1.0]: https://example.com/0.1.0
[0.2.0]: https://example.com/0.2.0
"""


def test_a_version_has_what_stands_below_its_heading() -> None:
    assert release_notes.notes(CHANGELOG, "0.2.0") == "### Fixed\n\n- A thing.\n\n### Added\n\n- Another.\n"


def test_a_version_without_words_is_no_release() -> None:
    with pytest.raises(ValueError, match=r"says nothing of version 0\.1\.0"):
        release_notes.notes(CHANGELOG, "0.1.0")


def test_a_version_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"no version 0\.3\.0, only Unreleased, 0\.2\.0, 0\.1\.0"):
        release_notes.notes(CHANGELOG, "0.3.0")


@pytest.mark.parametrize("version", ["0.2.0", "v0.2.0"])
def test_the_command_takes_a_tag(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "CHANGELOG.md"
    file.write_text(CHANGELOG)
    monkeypatch.setattr(release_notes, "CHANGELOG", file)
    assert release_notes.main([version]) == 0
    assert capsys.readouterr().out.startswith("### Fixed")


def test_the_command_fails_where_there_are_no_notes(capsys: pytest.CaptureFixture[str]) -> None:
    assert release_notes.main(["v999.0.0"]) == 1
    assert "no version 999.0.0" in capsys.readouterr().err


def test_the_project_s_changelog_is_of_that_form() -> None:
    changelog = release_notes.CHANGELOG.read_text(encoding="utf-8")
    versions = re.findall(r"^## \[([^\]]+)\]", changelog, re.MULTILINE)
    assert versions
    for version in versions:
        assert version == "Unreleased" or release_notes.notes(changelog, version)
