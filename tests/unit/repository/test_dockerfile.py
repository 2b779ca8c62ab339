"""The Dockerfile, .dockerignore and lock files: what can be judged without building the image."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

from builder import bake, entrypoint
from worker.base.settings import Settings, variables_of
from worker.request.plan.gpus import GPUS

ROOT = Path(__file__).resolve().parents[3]
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


def arguments() -> dict[str, str]:
    """The defaults of the build arguments."""
    return dict(text.split("=", 1) for text in named("ARG") if "=" in text)


def filled(text: str, **given: str) -> str:
    """`text` with its build arguments put in."""
    return re.sub(r"\$\{(\w+)\}", lambda found: {**arguments(), **given}[found[1]], text)


def stages(**given: str) -> dict[str, str]:
    """Stage -> the image or stage that it begins with; the last one is called ''."""
    words = [filled(text, **given).split() for text in named("FROM")]
    return {parts[2] if len(parts) > 1 else "": parts[0] for parts in words}


def test_the_base_can_be_replaced_by_a_build_argument() -> None:
    assert DOCKERFILE.splitlines()[0] == "ARG BASE_IMAGE=python:3.11-slim-bookworm"
    known: set[str] = set()
    for stage, begin in stages(BASE_IMAGE="base", SAGE_BASE_IMAGE="cuda-image").items():
        assert begin in known | {"base"} or (stage, begin) == ("cuda", "cuda-image")
        known.add(stage)
    used = [found for text in named("COPY") + named("RUN") for found in re.findall(r"from=([^\s,]+)", text)]
    assert set(used) == {"packages", "worker", "cuda", "sage", "models"}
    assert set(used) <= known


def test_sageattention_is_left_out_unless_a_cuda_image_is_given() -> None:
    assert arguments()["SAGE_BASE_IMAGE"] == arguments()["BASE_IMAGE"]
    script = (ROOT / "builder" / "sage.sh").read_text()
    assert 'if [ "$SAGE_BASE_IMAGE" = "$BASE_IMAGE" ]; then' in script
    used = set(re.findall(r"\$\{?([A-Z_]+)", script)) - {"PATH"}
    (stage,) = re.findall(r"^FROM installed AS sage$(.*?)^FROM", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert used == set(re.findall(r"^ARG (\w+)", stage, re.MULTILINE))


def test_sageattention_is_built_for_the_cuda_of_the_locked_torch_from_one_commit() -> None:
    locked = re.search(r"^cuda-toolkit==(\d+\.\d+)\.", CUDA.read_text(), re.MULTILINE)
    assert locked is not None
    assert arguments()["SAGE_CUDA"] == locked[1]
    images = re.findall(r"SAGE_BASE_IMAGE=(nvidia\S+)\)", (ROOT / "builder" / "image.sh").read_text())
    assert len(images) == 1
    assert re.fullmatch(rf"nvidia/cuda:{re.escape(locked[1])}\.\d+-devel-ubuntu22\.04", images[0])
    assert images[0] in (ROOT / ".github" / "workflows" / "release.yml").read_text()
    assert re.fullmatch(r"[0-9a-f]{40}", arguments()["SAGE_REF"])
    assert re.fullmatch(r'"(\d+\.\d;)*\d+\.\d"', arguments()["SAGE_CUDA_ARCHS"])


def test_every_gpu_of_the_table_has_kernels() -> None:
    """B200 alone has none: SageAttention 2.2.0 knows no compute capability 10.0, and torch's attention serves."""
    built = set(arguments()["SAGE_CUDA_ARCHS"].strip('"').split(";"))
    missing = {gpu.name for gpu in GPUS if "{}.{}".format(*gpu.compute_capability) not in built}
    assert missing == {"B200"}


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ("csrc/qattn/qk_int_sv_f8_cuda_sm90.cu", ["arch=compute_90a,code=sm_90a"]),
        ("csrc/fused/fused.cu", ["arch=compute_80,code=sm_80", "arch=compute_90a,code=sm_90a"]),
    ],
)
def test_the_source_for_hopper_is_compiled_for_hopper_alone(source: str, kept: list[str]) -> None:
    targets = ["-gencode", "arch=compute_80,code=sm_80", "-gencode", "arch=compute_90a,code=sm_90a"]
    sent = ["-O3", "--threads=8", *targets, "-c", source, "-DNAME=a b", "--threads", "8", "-o", "x.o"]
    command = [ROOT / "builder" / "nvcc.sh", "%s\n", *sent]
    variables = {"NVCC": "/usr/bin/printf", "PATH": "/usr/bin:/bin"}
    # printf as the compiler: its first argument is the format, the others come out one a line.
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    received = done.stdout.splitlines()
    assert [received[at + 1] for at, word in enumerate(received) if word == "-gencode"] == kept
    assert [word for word in received if "threads" in word or word == "8"] == []
    assert [word for word in received if word not in ("-gencode", *kept)] == [
        *("-O3", "-c", source, "-DNAME=a b", "-o", "x.o")
    ]


def test_the_compiler_follows_triton() -> None:
    assert arguments()["WITH_COMPILER"] == "1"
    (install,) = [text for text in named("RUN") if "--no-install-recommends gcc" in text]
    assert install.startswith('if [ "$WITH_COMPILER" = 1 ] && [ -d /opt/venv/lib/python3.11/site-packages/triton ]')
    triton = [requirement for requirement in pins(CUDA) if requirement.startswith("triton==")]
    assert len(triton) == 1
    assert [requirement for requirement in pins(RUN_TIME) if requirement.startswith("triton==")] == []


def test_the_worker_is_process_1_and_gets_the_signals() -> None:
    """The entry point replaces itself by the command (test_entrypoint)."""
    assert json.loads(named("CMD")[-1]) == ["python", "-u", "handler.py"]
    assert json.loads(named("ENTRYPOINT")[-1]) == ["python", "-I", "-S", "/app/builder/entrypoint.py"]
    assert json.loads(named("HEALTHCHECK")[-1].partition("CMD ")[2])


def test_the_image_has_the_user_that_the_entry_point_becomes() -> None:
    made = [text for text in named("RUN") if "useradd" in text]
    assert len(made) == 1
    assert f"useradd --create-home --uid {entrypoint.UID} worker" in made[0]
    assert "install -d -o worker -g worker /app/outputs /app/.state" in made[0]
    users = [filled(instruction.text) for instruction in final_stage() if instruction.name == "USER"]
    assert users == ["root"]  # for as long as the entry point opens the volume


def environment() -> dict[str, str]:
    pairs = " ".join(instruction.text for instruction in final_stage() if instruction.name == "ENV")
    return dict(pair.split("=", 1) for pair in pairs.split())


def test_nothing_is_written_outside_tmp_and_the_volume() -> None:
    found = environment()
    caches = {name: value for name, value in found.items() if name.endswith(("_CACHE_DIR", "CACHE_PATH", "CACHE_HOME"))}
    assert {"XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH"} <= set(caches)
    assert all(value.startswith("/tmp/") for value in (*caches.values(), found["HF_HOME"]))
    assert found["PYTHONUNBUFFERED"] == found["PYTHONDONTWRITEBYTECODE"] == found["HF_HUB_DISABLE_TELEMETRY"] == "1"
    # The worker's own settings are the operator's: the image presets none.
    assert set(found).isdisjoint({variable for name in Settings.model_fields for variable in variables_of(name)})


def test_models_are_baked_in_only_where_they_are_named() -> None:
    assert arguments()["BAKE_MODELS"] == bake.NONE
    parts = [text.split() for text in named("COPY") if text.startswith("--from=models")]
    assert [source for _, source, _ in parts] == [f"/baked/{number}/" for number in range(bake.PARTS)]
    assert {target for _, _, target in parts} == {"/models/"}


def test_the_hub_s_token_is_in_no_layer() -> None:
    using = [instruction for instruction in instructions(DOCKERFILE) if "token" in instruction.text.lower()]
    assert [instruction.name for instruction in using] == ["RUN"]
    assert using[0].text.startswith("--mount=type=secret,id=hf_token ")


def test_every_installation_requires_hashes_and_resolves_nothing() -> None:
    installations = [
        part for text in named("RUN") for part in re.split(r"&&|;", text) if " install " in part and "pip " in part
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
    assert [text for text in named("ARG") if re.match(r"(PIP|HF)_\w+=", text)] == []


def test_what_is_copied_exists_and_reaches_the_builder() -> None:
    sources = copied_from_context()
    assert {"handler.py", "test_input.json", "LICENSE", "THIRD_PARTY_NOTICES.md", "worker/"} <= set(sources)
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
