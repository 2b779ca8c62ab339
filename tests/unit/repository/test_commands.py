"""Every command that README and docs name is run by a test, or named here with the reason why it cannot be.

A command is a line of a shell block, or code in a sentence that begins like one. An entry of the tables below covers
all commands that begin with its words; the longest one counts.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
from standardwebhooks import Webhook

ROOT = Path(__file__).resolve().parents[3]
PAGES = [
    *(ROOT / name for name in ("README.md", "THIRD_PARTY_NOTICES.md", "benchmarks/README.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
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

# command -> the test that runs it, FILE::NAME below tests/.
RUN: Mapping[str, str] = {
    "python -m benchmarks.gpu --tiny": (
        "unit/benchmarks/test_benchmark_gpu.py::test_every_row_but_compile_runs_at_a_tiny_size_and_is_written"
    ),
    "curl -s -X POST localhost:8000/runsync": "flow/test_api.py::test_the_contracts_example_through_runpods_local_api",
    "make help": "unit/repository/test_commands.py::test_make_help_lists_every_target",
    "python -m benchmarks.vae": "unit/benchmarks/test_vae_benchmark.py::test_it_prints_and_writes_a_line_for_each_way",
    "python -c": "unit/repository/test_commands.py::test_the_command_that_makes_a_secret_makes_one",
    "python -m builder.docs.costs": "unit/repository/test_commands.py::test_the_table_of_costs_takes_a_price",
    "python -m builder.hub": "unit/builder/test_hub.py::test_a_file_that_is_out_of_date_is_named_and_then_written",
    "python -m builder.prepare": "unit/weights/test_weights_convert.py::test_the_command_prepares_and_says_the_sizes",
    "python -m worker.cli": "unit/repository/test_commands.py::test_every_documented_module_exists_and_answers_help",
    "python -m worker.cli generate": (
        "flow/test_cli_generate.py::test_a_video_and_its_poster_come_to_the_place_that_was_named"
    ),
    "python -m worker.cli submit": "flow/test_cli_submit.py::test_a_job_is_sent_followed_and_fetched",
    "python -m worker.doctor": "unit/repository/test_commands.py::test_the_doctor_looks_at_this_machine",
    "python -m worker.cli doctor": "unit/repository/test_commands.py::test_the_doctor_looks_at_this_machine",
    "python -m worker.cli plans": "unit/cli/test_memory_table.py::test_without_a_name_the_table_has_every_gpu",
    "python -m worker.cli plans --gpu": (
        "unit/cli/test_memory_table.py::test_a_gpu_prints_its_plans_and_the_largest_request"
    ),
    "python handler.py": (
        "flow/test_start.py::test_without_a_gpu_the_demo_model_is_said_in_one_line_and_runs_test_input"
    ),
    "python handler.py --rp_serve_api": "flow/test_api.py::test_the_contracts_example_through_runpods_local_api",
    "python handler.py --test_input": "flow/test_start.py::test_a_failed_local_run_exits_with_1_and_says_why",
    "uvicorn --app-dir examples receiver:app": (
        "flow/test_receiver.py::test_progress_and_final_events_arrive_and_are_handled"
    ),
}
# command -> why no test runs it. Modules answer --help all the same, and targets of make exist.
NOT_RUN: Mapping[str, str] = {
    "python -m benchmarks.quality": "takes an hour; its parts are tested in unit/training/test_training.py",
    "python -m training.train_demo": "takes hours; its parts are tested in unit/training/test_training.py",
    "python -m benchmarks.gpu": "needs a GPU; --tiny runs every row",
    "pip download": "needs the package index",
    "pip install": "needs downloaded wheels",
    "python3.11 -m venv": "a tool of Python",
    "curl -s -X POST https://api.runpod.ai": "needs RunPod",
    "curl -s https://api.runpod.ai": "needs RunPod",
    "curl -s -X POST https://rest.runpod.io": "needs RunPod",
    "builder/image.sh": "needs docker and minutes",
    "docker exec": "needs docker; the doctor is run without it",
    "docker push": "needs a registry",
    "docker run": "needs docker; `python -m builder.try_image` runs the image",
    "docker tag": "needs docker",
    "du -sh": "a tool of the system, on a volume of RunPod",
    "find /workspace/models": "a tool of the system, on a volume of RunPod",
    "git clone": "needs the repository's address",
    "make bench": "takes half an hour, and measures the machine",
    "make bench-faults": "takes hours; tests/faults runs a sample of each",
    "python -m benchmarks.encode --presets": "minutes, and measures the machine",
    "python -m benchmarks.load": "minutes, and writes 10 GB; unit/benchmarks/test_load_benchmark.py runs its parts",
    "python -m benchmarks.overhead": "minutes, and measures the machine; flow/test_job.py tests the jobs that it times",
    "make check": "minutes; it is the other half of CI",
    "make docs": "writes into the repository; its commands are tested with --check",
    "make hostile-urls": "needs root; its tests run without the namespace in `make test`",
    "make image": "needs docker and minutes",
    "make image-test": "needs docker and minutes",
    "make lock": "needs the package index and minutes",
    "make run": "sets up .venv; `python handler.py`, which it then runs, is tested",
    "make setup": "needs the package index; every run of the tests stands on what it made",
    "make setup-dev": "needs the package index; every run of the tests stands on what it made",
    "make test": "it is what runs this",
    "pip-audit": "asks a service on the network for known vulnerabilities",
    "python -m benchmarks.hostile_images": "minutes; tests/faults/test_hostile_images.py runs a sample",
    "python -m benchmarks.kills": "minutes; tests/faults/test_killed.py runs a kill at each stage",
    "python -m benchmarks.memory": "needs a GPU with --full; tests/unit/request/test_memory_estimate.py runs its parts",
    "python -m benchmarks.soak": "minutes; tests/faults/test_soak.py runs three minutes of it",
    "python -m benchmarks.startup": "minutes, and measures the machine",
    "python -m benchmarks.uploads": "minutes; tests/faults/test_storage_down.py runs a sample",
    "python -m benchmarks.webhooks": "minutes; tests/faults/test_webhook_faults.py runs the same cases",
    "python -m builder.audit": "judges the machine's own .venv; part of `make check`",
    "python -m builder.demo_run": "writes into the repository; `python handler.py`, which it runs, is tested",
}


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
    parts = re.split(r"\$\((?=python)|&& ", line)  # each command of a line, those whose output is used too
    found = []
    for part in parts:
        part = re.sub(r"^(?:[A-Z_]+=\S+ +)+", "", part.strip()).removeprefix(".venv/bin/").replace('"https', "https")
        part = re.sub(r"^python3 ", "python ", part)
        part = re.sub(r"^videogen\b", "python -m worker.cli", part)  # the console script
        if part and part.split()[0] not in PREPARES:
            found.append(part)
    return found


def entry_for(command: str, entries: Mapping[str, str]) -> str | None:
    """The longest entry whose words the command begins with; an address may go on behind its host."""
    fitting = [entry for entry in entries if command == entry or command.startswith((f"{entry} ", f"{entry}/"))]
    return max(fitting, key=len, default=None)


DOCUMENTED = sorted({command for page in PAGES for command in commands_of(page.read_text(encoding="utf-8"))})
MODULES = sorted({found[1] for command in DOCUMENTED if (found := re.match(r"python -m ([\w.]+)", command))})
TARGETS = sorted({found[1] for command in DOCUMENTED if (found := re.match(r"make ([a-z-]+)", command))})


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


@cache
def help_of(module: str) -> str:
    """What --help prints; of a benchmark the source, since most of them import torch before they read a flag."""
    if module.startswith("benchmarks."):
        return (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    done = run(sys.executable, "-m", module, "--help")
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def has_flags(module: str) -> bool:
    """Whether a module reads arguments at all, by the source of what `python -m` runs."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"there is no module {module}"
    assert spec.origin is not None
    sources = [Path(spec.origin), Path(spec.origin).with_name("__main__.py")]
    return any(path.is_file() and "argparse" in path.read_text(encoding="utf-8") for path in sources)


@pytest.mark.parametrize("command", DOCUMENTED)
def test_every_documented_command_is_run_or_has_a_reason(command: str) -> None:
    entry = entry_for(command, {**RUN, **NOT_RUN})
    assert entry is not None, "let a test run it, or name it in tests/unit/repository/test_commands.py with the reason"


@pytest.mark.parametrize("entry", sorted({**RUN, **NOT_RUN}))
def test_every_entry_is_still_documented(entry: str) -> None:
    assert any(entry_for(command, {**RUN, **NOT_RUN}) == entry for command in DOCUMENTED), "remove the entry"


def test_no_command_is_in_both_tables_and_every_reason_says_something() -> None:
    assert not set(RUN) & set(NOT_RUN)
    assert all(len(reason) > 8 for reason in NOT_RUN.values())


@pytest.mark.parametrize("test", sorted(set(RUN.values())))
def test_the_tests_that_are_named_exist(test: str) -> None:
    file, _, name = test.partition("::")
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("module", MODULES)
def test_every_documented_module_exists_and_answers_help(module: str) -> None:
    if has_flags(module) and not module.startswith("benchmarks."):
        assert "usage:" in help_of(module)


@pytest.mark.parametrize("command", [command for command in DOCUMENTED if command.startswith("python -m ")])
def test_every_documented_flag_is_one_of_its_module(command: str) -> None:
    _, _, module, *words = shlex.split(re.sub(r"[\[\]|]", " ", command))
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    if not flags:
        return
    assert has_flags(module)
    text = help_of(module)
    if words[0].isalpha() and words[0] in text and not words[0].isupper():  # a command of the module
        done = run(sys.executable, "-m", module, words[0], "--help")
        text = done.stdout if done.returncode == 0 else text
    assert {flag for flag in flags if not re.search(rf"(?<![\w-]){flag}(?![\w-])", text)} == set()


@pytest.mark.parametrize("target", TARGETS)
def test_every_documented_target_of_make_exists(target: str) -> None:
    assert run("make", "-n", target).returncode == 0


def test_make_help_lists_every_target() -> None:
    done = run("make", "--no-print-directory", "help")
    assert done.returncode == 0
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {line.split()[0] for line in done.stdout.splitlines()} == set(re.findall(r"^([a-z-]+):", makefile, re.M))


def test_the_command_that_makes_a_secret_makes_one() -> None:
    (command,) = {command.rstrip(")") for command in DOCUMENTED if command.startswith("python -c")}
    _, flag, code = shlex.split(f"{command})" if command.count("(") > command.count(")") else command)
    done = run(sys.executable, flag, code)
    assert Webhook(done.stdout.strip()) is not None
    assert done.stdout.startswith("whsec_")


def test_the_command_line_tells_what_a_video_will_take(tmp_path: Path) -> None:
    readme = commands_of((ROOT / "README.md").read_text(encoding="utf-8"))
    (command,) = (command for command in readme if "--dry-run" in command)
    done = run(sys.executable, *shlex.split(command)[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "on L40S" in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [("worker.doctor",), ("worker.cli", "doctor")], ids=str)
def test_the_doctor_looks_at_this_machine(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = run(sys.executable, "-m", *words, cwd=tmp_path)
    assert re.search(r"^\d+ checks in ", done.stdout, re.MULTILINE)
    assert "Traceback" not in done.stderr


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
