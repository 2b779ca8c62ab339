"""The Dockerfile, .dockerignore and lock files: what can be judged without building the image."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
RUN_TIME = ROOT / "builder" / "requirements.txt"
TORCH = ROOT / "builder" / "requirements-torch.txt"
CUDA = ROOT / "builder" / "requirements-cuda.txt"


@dataclass(frozen=True)
class Instruction:
    name: str
    text: str


def instructions(dockerfile: str) -> list[Instruction]:
    """Each instruction on one line, comments left out."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def named(name: str) -> list[str]:
    return [instruction.text for instruction in instructions(DOCKERFILE) if instruction.name == name]


def final_stage() -> list[Instruction]:
    found = instructions(DOCKERFILE)
    last = max(index for index, instruction in enumerate(found) if instruction.name == "FROM")
    return found[last:]


def copied_from_context() -> list[str]:
    """The sources of every COPY that takes from the repository."""
    words = [text.split() for text in named("COPY") if not text.startswith("--from=")]
    return [source for parts in words for source in parts[:-1]]


def excluded(path: str) -> bool:
    """Docker's rule: the last pattern that matches the path or a folder above it decides, `!` brings back."""
    parts = path.split("/")
    prefixes = ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        brings_back, pattern = pattern.startswith("!"), pattern.removeprefix("!").rstrip("/")
        if pattern.startswith("**/"):
            matches = any(fnmatch(part, pattern.removeprefix("**/")) for part in parts)
        else:
            matches = any(prefix.count("/") == pattern.count("/") and fnmatch(prefix, pattern) for prefix in prefixes)
        if matches:
            out = not brings_back
    return out


def pins(lock: Path) -> dict[str, list[str]]:
    """Name and version -> hashes, for every line that asks for a package."""
    text = re.sub(r"\\\n\s*", "", lock.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return {line.split()[0]: line.split()[1:] for line in lines}


def test_the_base_can_be_replaced_by_a_build_argument() -> None:
    first, second = DOCKERFILE.splitlines()[0], instructions(DOCKERFILE)[1]
    assert first == "ARG BASE_IMAGE=python:3.11-slim-bookworm"
    assert second.name == "FROM"
    stages: set[str] = set()
    for text in named("FROM"):
        image, *rest = text.split()
        assert image == "${BASE_IMAGE}" or image in stages, f"FROM {text}"
        if rest:
            assert rest[0] == "AS"
            stages.add(rest[1])
    for text in named("COPY"):
        if found := re.match(r"--from=(\S+)", text):
            assert found[1] in stages, f"COPY {text}"


def test_the_worker_is_process_1_and_gets_the_signals() -> None:
    assert json.loads(named("CMD")[-1]) == ["python", "-u", "handler.py"]
    assert named("ENTRYPOINT") == []
    assert json.loads(named("HEALTHCHECK")[-1].partition("CMD ")[2])


def test_the_worker_does_not_run_as_root() -> None:
    users = [instruction.text for instruction in final_stage() if instruction.name == "USER"]
    arguments = dict(text.split("=", 1) for text in named("ARG") if "=" in text)
    user = re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], users[-1])
    assert user not in ("", "root", "0")
    made = [text for text in named("RUN") if "useradd" in text]
    assert any(re.search(rf"\buseradd\b.*\s{user}\b", text) for text in made)


def test_every_installation_requires_hashes_and_resolves_nothing() -> None:
    installations = [
        part for text in named("RUN") for part in re.split(r"&&|;", text) if " install " in part and "pip" in part
    ]
    installed = [part.split()[-1] for part in installations]
    assert sorted(installed) == ["requirements-cuda.txt", "requirements-torch.txt", "requirements.txt"]
    for part in installations:
        assert "--require-hashes" in part, part
        assert "--no-deps" in part, part
        assert "--only-binary :all:" in part, part


def test_the_cuda_libraries_follow_the_rule_of_the_virtual_environment() -> None:
    rule = "any('nvidia' in r for r in m.requires('torch') or ())"
    assert rule in (ROOT / "builder" / "setup_venv.py").read_text()
    assert sum(rule in text for text in named("RUN")) == 1


def test_no_address_or_folder_of_a_builder_is_written_down() -> None:
    values = " ".join(instruction.text for instruction in instructions(DOCKERFILE))
    assert re.findall(r"\w+://\S+", values) == []
    assert [text for text in named("ARG") if re.match(r"PIP_\w+=", text)] == []


def test_what_is_copied_exists_and_reaches_the_builder() -> None:
    sources = copied_from_context()
    assert {"handler.py", "test_input.json", "worker/"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert (ROOT / source).is_dir() == source.endswith("/"), source
        assert not excluded(source.rstrip("/")), source
    for file in (ROOT / "worker").rglob("*.py"):
        assert not excluded(file.relative_to(ROOT).as_posix()), file


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".venv/bin/python",
        ".env",
        ".state/jobs/1.json",
        "outputs/videos/0.mp4",
        "tests/conftest.py",
        "docs/image.md",
        "builder/requirements-dev.txt",
        "worker/__pycache__/job.cpython-311.pyc",
    ],
)
def test_what_does_not_run_stays_out_of_the_build(path: str) -> None:
    assert excluded(path)


@pytest.mark.parametrize(
    "lock", [TORCH, RUN_TIME, CUDA, ROOT / "builder" / "requirements-dev.txt"], ids=lambda lock: lock.name
)
def test_every_line_of_a_lock_is_pinned_with_hashes(lock: Path) -> None:
    found = pins(lock)
    assert found
    for requirement, hashes in found.items():
        assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*==[0-9][\w.!+]*", requirement), requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", digest) for digest in hashes), requirement


def test_torch_has_one_pin_with_the_hashes_of_both_builds() -> None:
    """A local version (`+cpu`) would match one build only."""
    ((torch, hashes),) = pins(TORCH).items()
    assert re.fullmatch(r"torch==[0-9.]+", torch)
    assert len(hashes) >= 2


def test_the_run_time_lock_forces_no_cuda_library() -> None:
    cuda_only = re.compile(r"(nvidia|cuda)[-_]|triton==")
    forced = [*pins(TORCH), *pins(RUN_TIME)]
    assert [requirement for requirement in forced if cuda_only.match(requirement)] == []
    assert [requirement for requirement in pins(CUDA) if requirement.startswith("nvidia-")]
    names = [requirement.split("==")[0] for lock in (TORCH, RUN_TIME, CUDA) for requirement in pins(lock)]
    assert len(names) == len(set(names))


def test_the_default_version_is_the_project_s() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"VERSION={version}" in named("ARG")
