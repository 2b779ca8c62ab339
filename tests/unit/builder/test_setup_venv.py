"""What `make setup` says while it installs, and the command that it leaves in .venv/bin."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from builder import demo_run, setup_venv

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for .venv/bin/python whose pip says what pip says; `fail` beside it makes it fail."""
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/bin/sh\n"
        'case "$*" in *"install --progress-bar off"*) ;; *) echo "no such option"; exit 2;; esac\n'
        "echo 'Collecting numpy==2.3.4 (from -r lock.txt)'\n"
        "echo '  Downloading numpy-2.3.4-cp311-cp311-manylinux.whl (16 MB)'\n"
        "echo 'Processing /cache/ftfy-6.3.1-py3-none-any.whl'\n"
        "[ -e \"$(dirname $0)/fail\" ] && { echo 'ERROR: hashes differ'; exit 1; }\n"
        "echo 'Installing collected packages: numpy, ftfy'\n"
        'sleep 1; mkdir -p "$(dirname $0)/../lib/python3.11/site-packages/numpy-2.3.4.dist-info"; sleep 1\n'
    )
    python.chmod(0o755)
    (tmp_path / "builder").mkdir()
    (tmp_path / "builder" / "lock.txt").write_text(
        "numpy==2.3.4 \\\n    --hash=sha256:00\nftfy==6.3.1 \\\n    --hash=sha256:11\n"
    )
    for name, value in {"ROOT": tmp_path, "VENV": tmp_path / ".venv", "PYTHON": python}.items():
        monkeypatch.setattr(setup_venv, name, value)
    return python


def test_a_terminal_sees_each_package_and_how_many_are_left(
    pip: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    setup_venv.install("lock.txt")
    states = capsys.readouterr().out.split("\r\x1b[K")[1:]
    assert states[:2] == [
        "lock.txt: looking for package 1 of 2, numpy",
        "lock.txt: looking for package 2 of 2, ftfy",
    ]
    assert {"lock.txt: putting packages into .venv, 1 of 2"} <= set(states[2:-1])
    assert re.fullmatch(r"lock\.txt: done in \d+ s\n", states[-1])


def test_elsewhere_each_lock_has_its_line_and_a_second_run_none(pip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_venv.install("lock.txt")
    assert re.fullmatch(r"lock\.txt: done in \d+ s\n", capsys.readouterr().out)
    setup_venv.install("lock.txt")
    assert capsys.readouterr().out == ""


def test_another_folder_has_packages_of_its_own(pip: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shutil.copytree(tmp_path / ".venv", tmp_path / ".venv-play")
    pip.with_name("fail").touch()
    setup_venv.install("lock.txt", into=tmp_path / ".venv-play")
    assert (tmp_path / ".venv-play" / "lock.txt.sha256").exists()
    assert not (tmp_path / ".venv" / "lock.txt.sha256").exists()


def test_what_pip_says_is_shown_where_it_fails(pip: Path) -> None:
    pip.with_name("fail").touch()
    with pytest.raises(SystemExit) as ended:
        setup_venv.install("lock.txt")
    assert "ERROR: hashes differ" in str(ended.value)
    assert str(ended.value).endswith("pip could not install builder/lock.txt: what it said is above")


def test_the_command_that_setup_writes_is_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.symlink_to(sys.executable)
    monkeypatch.setattr(setup_venv, "PYTHON", python)
    monkeypatch.setattr(setup_venv, "SITE_PACKAGES", tmp_path)
    setup_venv.write_scripts()
    assert all(Path(line).is_dir() for line in (tmp_path / "videogen.pth").read_text().splitlines())
    (tmp_path / "videogen").write_text((tmp_path / "videogen").read_text().replace(str(python), sys.executable))
    done = subprocess.run([tmp_path / "videogen", "genrate"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("did you mean generate?\n")


@pytest.mark.parametrize("words", [["-m", "worker.cli"], ["-m", "worker.doctor"], ["handler.py"]], ids=str)
def test_without_the_packages_a_sentence_says_what_to_do(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-S", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("run make setup first, then use .venv/bin/videogen, or .venv/bin/python\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("target", ["run", "setup", "setup-dev"])
def test_without_python_a_sentence_says_so(target: str) -> None:
    done = subprocess.run(
        ["make", target, "PYTHON=python3.11-not-here"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Python 3.11 is needed, and there is no python3.11-not-here: install it with venv")
    assert "127" not in done.stderr


def test_the_descriptions_of_make_help_stand_in_one_column() -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert len({len(line) - len(line.split(None, 1)[1]) for line in done.stdout.splitlines()}) == 1


def test_help_of_the_demo_run_runs_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["demo_run", "--help"])
    monkeypatch.setattr(demo_run, "run", lambda *_: pytest.fail("the job was run"))
    with pytest.raises(SystemExit) as ended:
        demo_run.main()
    assert ended.value.code == 0
    assert "usage: python -m builder.demo_run" in capsys.readouterr().out
