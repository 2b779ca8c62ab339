"""The list of mutants fits the code, and the command tells a change that is noticed from one that is not."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from benchmarks import mutants
from benchmarks.mutants import MUTANTS
from benchmarks.mutants_engine import Mutant


def test_every_mutant_changes_one_text_that_is_there() -> None:
    assert [problem for mutant in MUTANTS if (problem := mutants.misplaced(mutant)) is not None] == []
    assert all(mutant.old != mutant.new for mutant in MUTANTS)
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 60


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_its_tests_are_there_and_it_is_still_python(mutant: Mutant) -> None:
    files = [word for word in shlex.split(mutant.tests) if word.startswith("tests/")]
    assert files
    assert [file for file in files if not (mutants.ROOT / file).exists()] == []
    source = (mutants.ROOT / mutant.file).read_text(encoding="utf-8").replace(mutant.old, mutant.new)
    compile(source, mutant.file, "exec")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')
    (tmp_path / "sums.py").write_text("def double(n):\n    return 2 * n\n\ndef half(n):\n    return n / 2\n")
    (tmp_path / "test_sums.py").write_text("import sums\n\ndef test_double():\n    assert sums.double(3) == 6\n")
    return tmp_path


def of_sums(old: str, new: str, tests: str = "test_sums.py") -> Mutant:
    return Mutant("a name", "sums.py", old, new, tests)


@pytest.mark.slow
def test_a_survivor_fails_the_command_and_the_tree_stays(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (tree / "sums.py").read_text()
    noticed, survivor = of_sums("2 * n", "3 * n"), of_sums("n / 2", "n / 3")
    assert mutants.judge([noticed], tree) == 0
    assert mutants.judge([noticed, survivor], tree) == 1
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "killed",
        "1",
        "killed",
        "survived",
        "1",
    ]
    assert (tree / "sums.py").read_text() == before
    assert mutants.judge([of_sums("2 * n", "2 * n + 0", "test_sums.py -k nothing")], tree) == 2


def test_a_text_that_is_gone_or_there_twice_is_named(tree: Path) -> None:
    assert mutants.misplaced(of_sums("4 * n", ""), tree) == "a name: its text is 0 times in sums.py"
    assert mutants.misplaced(of_sums("return", ""), tree) == "a name: its text is 2 times in sums.py"
    assert "there is no sums" in str(mutants.misplaced(Mutant("a name", "sums", "", "", ""), tree))
