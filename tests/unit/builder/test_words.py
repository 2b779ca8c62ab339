"""The word list: what is found in prose, strings and comments, and what is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder import words


def found(text: str, name: str) -> list[tuple[int, str]]:
    return sorted((line, word) for line, word, _ in words.found_in(text, name))


def test_prose_is_looked_at_and_code_is_not() -> None:
    page = "The file lies there.\n```text\nit lies\n```\nWrite `mend`, or none was at\nhand. Latent, lien, telling.\n"
    assert found(page, "a.md") == [(1, "lies"), (6, "at hand"), (6, "telling")]


def test_strings_and_comments_are_looked_at_and_names_are_not() -> None:
    source = (
        '"""Answers the sum."""\n\ntold = 1  # in vain\nraise ValueError(f"{told}: mend it")\n'
        '# none is at\n# hand\ndef answers() -> None:\n    """The answers of `told`."""\n'
    )
    expected = [(1, "Answers"), (3, "in vain"), (4, "mend"), (6, "at hand")]
    assert found(source, "a.py") == expected


def test_a_sentence_in_the_midst_of_a_docstring_counts_too() -> None:
    assert found('"""Write it. Answers its size."""\n', "a.py") == [(1, "Answers")]


def test_every_word_has_a_replacement_that_is_not_in_the_list() -> None:
    for instead in words.WORDS.values():
        assert instead
        assert found(instead, "a.md") == []


def test_the_command_names_line_and_word_and_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(words, "ROOT", tmp_path)
    (tmp_path / "a.md").write_text("Fine.\nIt lies there.\n")
    assert words.main(["a.md"]) == 1
    assert capsys.readouterr().err == "a.md:2: 'lies': write is stored, is in\n"
