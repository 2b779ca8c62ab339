"""The commands that README and docs name exist, take the flags that are shown, and the cheap ones do what is said.

A command is a line of a shell block, or code in a sentence that begins like one.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from worker.request.payload import VideoInput

ROOT = Path(__file__).resolve().parents[3]
PAGES = [
    *(ROOT / name for name in ("README.md", "THIRD_PARTY_NOTICES.md")),
    *sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]),
]
SHELL = ("shell", "bash", "sh")
# How code in a sentence begins where it is a command.
INLINE = re.compile(
    r"(?:[A-Z_]+=\S+ +)*"
    r"((?:\.venv/bin/)?(python3? (-|[\w/]+\.py)|videogen [a-z])|make [a-z]|docker [a-z]|builder/\w+\.sh -|pip-audit\b|"
    r"cd /)"
)
# What only prepares the shell for the command behind it.
PREPARES = ("cd", "export", "mkdir")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def commands_of(page: str) -> list[str]:
    """The commands of a page in one form: without comments, variables before them, and the folder of python."""
    lines: list[str] = []
    for info, block in re.findall(r"^ *```([^\n]*)\n(.*?)^ *```$", page, re.DOTALL | re.MULTILINE):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            kind = info.partition(" ")[0]  # a word behind it names the block for a test
            if kind in SHELL or (kind == "" and INLINE.match(line.strip())):
                lines.append(line)
            elif kind == "console" and line.startswith("$ "):
                lines.append(line[2:])
    sentences = re.sub(r"^ *```.*?^ *```$", "", page, flags=re.DOTALL | re.MULTILINE)
    lines += [code for code in re.findall(r"`([^`]+)`", sentences) if INLINE.match(code)]
    return [command for line in lines for command in _plain(line)]


def _plain(line: str) -> list[str]:
    line = re.sub(r"(?:^|\s)#\s.*", "", " ".join(line.split()))
    found = []
    for part in re.split(r"\$\((?=python)|&& ", line):  # each command of a line, those whose output is used too
        part = re.sub(r"^(?:[A-Z_]+=\S+ +)+", "", part.strip()).removeprefix(".venv/bin/")
        part = re.sub(r"^python3 ", "python ", part)
        part = re.sub(r"^videogen\b", "python -m worker.cli", part)  # the console script
        if part and part.split()[0] not in PREPARES:
            found.append(part)
    return found


DOCUMENTED = sorted({command for page in PAGES for command in commands_of(page.read_text(encoding="utf-8"))})
OF_MODULES = [
    command for command in DOCUMENTED if re.match(r"python -m (worker|builder|benchmarks|training)\.[a-z]", command)
]
WITH_HELP = sorted({command.split()[2] for command in OF_MODULES if not command.startswith("python -m benchmarks.")})


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=220, check=False)


def sources_of(module: str) -> str:
    """What `python -m` runs, and the files beside it: a package's flags may be in any of them."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"there is no module {module}"
    assert spec.origin is not None
    path = Path(spec.origin)
    files = path.parent.glob("*.py") if spec.submodule_search_locations else [path]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


# Flags of the command line that are made from the fields of a request stand in no source.
OF_FIELDS = {f"--{name.replace('_', '-')}" for name in VideoInput.model_fields}


def test_every_documented_module_exists_and_has_the_flags_that_are_shown() -> None:
    for command in OF_MODULES:
        module = command.split()[2]
        known = set(FLAG.findall(sources_of(module))) | (OF_FIELDS if module == "worker.cli" else set())
        assert set(FLAG.findall(command)) <= known, command


# All in one process, which imports torch once.
HELP = """
import contextlib, io, runpy, sys
for module in sys.argv[1:]:
    sys.argv, said = [module, "--help"], io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            print(module, ended.code or 0, said.getvalue()[:6], file=sys.__stdout__)
"""


@pytest.mark.slow
def test_every_documented_module_answers_help() -> None:
    asked = [module for module in WITH_HELP if "argparse" in sources_of(module)]
    assert len(asked) > 5
    done = run(sys.executable, "-W", "ignore", "-c", HELP, *asked)
    assert done.stdout.splitlines() == [f"{module} 0 usage:" for module in asked], done.stderr


def test_every_documented_target_of_make_exists_and_help_lists_them_all() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {found[1] for command in DOCUMENTED if (found := re.match(r"make ([a-z-]+)", command))}
    assert {"run", "test", "check"} <= named <= targets
    listed = run("make", "--no-print-directory", "help").stdout
    assert {line.split()[0] for line in listed.splitlines()} == targets


def test_the_command_that_makes_a_secret_makes_one() -> None:
    (command,) = {each.rstrip(")") for each in DOCUMENTED if each.startswith("python -c") and "whsec_" in each}
    _, flag, code = shlex.split(f"{command})" if command.count("(") > command.count(")") else command)
    done = run(sys.executable, flag, code)
    assert Webhook(done.stdout.strip()) is not None
    assert done.stdout.startswith("whsec_")


def test_the_command_line_says_what_a_video_will_take(tmp_path: Path) -> None:
    readme = commands_of((ROOT / "README.md").read_text(encoding="utf-8"))
    (command,) = (command for command in readme if "--dry-run" in command)
    done = run(sys.executable, *shlex.split(command)[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "on L40S" in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_doctor_looks_at_this_machine(tmp_path: Path) -> None:
    done = run(sys.executable, "-m", "worker.doctor", cwd=tmp_path)
    assert re.search(r"^\d+ checks in ", done.stdout, re.MULTILINE)
    assert "Traceback" not in done.stderr


@pytest.mark.slow  # test_the_command_line_says_what_a_video_will_take runs the command
def test_the_table_of_costs_takes_a_price() -> None:
    done = run(sys.executable, "-m", "builder.docs.costs", "--price", "H100 80GB=2.49", "--price", "L40S=0.90")
    rows = [line.split(" | ") for line in done.stdout.splitlines()[2:]]
    assert [(row[0], row[1]) for row in rows] == [("| L40S", "0.90"), ("| H100 80GB", "2.49")]
    refused = run(sys.executable, "-m", "builder.docs.costs", "--price", "H999=1")
    assert refused.returncode == 2
    assert "the GPUs are A100 40GB" in refused.stderr


def test_commands_are_found_in_every_form() -> None:
    page = (
        "Run `make run` or `A=b .venv/bin/python -m x --y`; `not a command`, `python -m x`.\n"
        "```shell\n# a comment\nB=c .venv/bin/python -m \\\n  z --flag   # said\nmake t && docker run a\n```\n"
        "```text\nmake nothing\n```\n```\nmake image\nsome words\n```\n```console\n$ pip-audit\nfine\n```\n"
    )
    in_blocks = ["python -m z --flag", "make t", "docker run a", "make image", "pip-audit"]
    assert commands_of(page) == [*in_blocks, "make run", "python -m x --y", "python -m x"]
