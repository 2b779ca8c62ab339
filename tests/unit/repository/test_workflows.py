"""The workflows for GitHub: pinned, least privileged, bounded, and made of commands that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# An action's version -> the commit that its tag names; each was compared with workflows of several other projects.
REVIEWED = {
    "actions/checkout@de0fac2e4500dabe0009e67214ff5f5447ce83dd": "v6.0.2",
    "actions/setup-python@a309ff8b426b58ec0e2a45f0f869d46889d02405": "v6.2.0",
    "docker/build-push-action@10e90e3645eae34f1e60eeb005ba3a3d33f178e8": "v6.19.2",
    "docker/login-action@5e57cd118135c172c3672efd75eb46360885c0ef": "v3.6.0",
    "docker/metadata-action@c299e40c65443455700f0fdfc63efafe5b349051": "v5.10.0",
    "docker/setup-buildx-action@8d2750c68a42422c14e847fe6c8ac0403b4cbd6f": "v3.12.0",
}
WRITES = {"publish": {"contents": "read", "packages": "write"}, "release": {"contents": "write"}}


def load(path: Path) -> dict[str, Any]:
    """YAML 1.1 reads the key `on` as true."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {"on" if key is True else key: value for key, value in content.items()}


def jobs() -> list[Any]:
    return [
        pytest.param(name, job, id=f"{path.stem}.{name}") for path in FILES for name, job in load(path)["jobs"].items()
    ]


def steps() -> Iterator[dict[str, Any]]:
    for path in FILES:
        for job in load(path)["jobs"].values():
            yield from job.get("steps", ())


def test_both_workflows_are_there() -> None:
    assert [path.name for path in FILES] == ["ci.yml", "release.yml"]


def test_every_action_is_pinned_to_a_reviewed_commit_with_its_version() -> None:
    lines = [line.strip() for path in FILES for line in path.read_text().splitlines() if "uses:" in line]
    remote = [line for line in lines if "uses: ./" not in line]
    assert remote
    for line in remote:
        found = re.fullmatch(r"(?:- )?uses: ([\w.-]+/[\w.-]+@[0-9a-f]{40}) # (v\d+\.\d+\.\d+)", line)
        assert found is not None, line
        assert REVIEWED[found[1]] == found[2]
    used = {line.partition("uses: ")[2].split()[0] for line in remote}
    assert used == set(REVIEWED)


def test_a_workflow_that_is_called_is_there() -> None:
    called = [job["uses"] for path in FILES for job in load(path)["jobs"].values() if "uses" in job]
    assert called == ["./.github/workflows/ci.yml"]
    assert "workflow_call" in load(ROOT / called[0])["on"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_workflow_may_read_only_and_runs_once_a_branch(path: Path) -> None:
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert "github.ref" in workflow["concurrency"]["group"]
    assert "cancel-in-progress" in workflow["concurrency"]
    assert "pull_request_target" not in workflow["on"]


@pytest.mark.parametrize(("name", "job"), jobs())
def test_a_job_is_bounded_and_writes_only_what_it_must(name: str, job: dict[str, Any]) -> None:
    assert job.get("permissions") == WRITES.get(name)
    if "uses" not in job:
        assert 0 < job["timeout-minutes"] <= 360
        assert re.fullmatch(r"ubuntu-\d\d\.\d\d", job["runs-on"])


def test_checkouts_keep_no_credentials() -> None:
    found = [step for step in steps() if "actions/checkout@" in step.get("uses", "")]
    assert found
    assert all(step["with"]["persist-credentials"] is False for step in found)


def test_every_make_target_exists_and_python_is_the_project_s() -> None:
    makefile = (ROOT / "Makefile").read_text()
    commands = [step["run"] for step in steps() if "run" in step]
    called = {
        word
        for command in commands
        for line in re.findall(r"^make (.*)$", command, re.MULTILINE)
        for word in re.sub(r'\w+="[^"]*"', "", line).split()
    }
    assert called == {"check", "test-all", "image", "image-test"}
    for target in called:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for step in steps():
        if "actions/setup-python@" in step.get("uses", ""):
            assert step["with"]["python-version"] == "3.11"


def test_commands_of_the_workflows_are_of_this_repository() -> None:
    modules = {module for step in steps() for module in re.findall(r"-m (builder\.\w+)", step.get("run", ""))}
    assert modules == {"builder.release_notes"}
    for module in modules:
        assert (ROOT / (module.replace(".", "/") + ".py")).exists()


def test_no_command_holds_a_secret_or_what_a_stranger_wrote() -> None:
    """An expression inside a command is pasted into the shell: they come by way of `env`; none is printed."""
    for step in steps():
        assert "${{" not in step.get("run", ""), step
    text = "\n".join(path.read_text() for path in FILES)
    assert set(re.findall(r"secrets\.(\w+)", text)) == {"GITHUB_TOKEN"}
    using = [step for step in steps() if "secrets." in str(step) or "github.token" in str(step)]
    assert len(using) == 2
    assert all("echo" not in step.get("run", "") and "set -x" not in step.get("run", "") for step in using)


def test_a_tag_alone_publishes() -> None:
    assert load(ROOT / ".github" / "workflows" / "release.yml")["on"] == {"push": {"tags": ["v*"]}}
    ci = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "push: true" not in ci
    assert "packages: write" not in ci


def test_an_image_is_published_only_after_the_checks() -> None:
    needs = {name: job.get("needs") for name, job in load(ROOT / ".github/workflows/release.yml")["jobs"].items()}
    assert needs == {"check": None, "notes": None, "publish": ["check", "notes"], "release": ["publish"]}
