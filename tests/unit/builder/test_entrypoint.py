"""The container's entry: what it gives away, what it leaves alone, and as whom the command then runs."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from builder import entrypoint
from worker.base import folders
from worker.base.settings import Settings

ENTRY = Path(entrypoint.__file__)
REPORT = (
    "import json, os; status = dict(line.split(':', 1) for line in open('/proc/self/status')); "
    "print(json.dumps({'pid': os.getpid(), 'uid': os.getuid(), 'gid': os.getgid(), 'groups': os.getgroups(), "
    "'new_privileges': status['NoNewPrivs'].strip(), 'capabilities': status['CapEff'].strip()}))"
)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away and change its user")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user can reach: pytest's own are closed to all but their owner, and TMPDIR may be."""
    folder = Path(tempfile.mkdtemp(prefix="entrypoint-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def enter(
    place: Path, *command: str, environment: Mapping[str, str] | None = None, user: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the entry with the system's own environment left out."""
    variables = {"PATH": "/usr/bin:/bin", "HOME": str(place), **(environment if environment is not None else {})}
    script = place / "entrypoint.py"
    script.write_text(ENTRY.read_text())  # where an unprivileged user can read it
    arguments = [_python(), "-I", "-S", str(script), *command]
    return subprocess.run(
        arguments, env=variables, cwd=place, user=user, capture_output=True, text=True, timeout=60, check=False
    )


def _python() -> str:
    """An interpreter that uid 1000 can execute: not the virtual environment's, which may be in a closed home."""
    for candidate in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        path = Path(candidate).resolve()
        if path.exists() and all(place.stat().st_mode & stat.S_IXOTH for place in (path, *path.parents)):
            return str(path)
    pytest.skip("no other user can execute a Python of this machine")


def owner(path: Path) -> int:
    return path.lstat().st_uid


def models_and_state(place: Path) -> dict[str, str]:
    return {"MODEL_CACHE_DIR": str(place / "models"), "OUTPUT_DIR": str(place / "outputs")}


@as_root
def test_the_command_runs_unprivileged_in_the_same_process(place: Path) -> None:
    with subprocess.Popen(
        [_python(), "-I", "-S", str(ENTRY), _python(), "-c", REPORT],
        env={"PATH": os.environ["PATH"], **models_and_state(place)},
        cwd=place,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        report = json.loads(process.stdout.read())
    assert report == {
        "pid": process.pid,
        "uid": 1000,
        "gid": 1000,
        "groups": [],
        "new_privileges": "1",
        "capabilities": "0000000000000000",
    }


@as_root
def test_folders_of_root_are_made_and_given_away(place: Path) -> None:
    done = enter(place, "/bin/touch", "models/a", "state/b", "outputs/c", environment=models_and_state(place))
    assert (done.returncode, done.stderr) == (0, "")
    assert [owner(place / name) for name in ("models", "state", "outputs")] == [1000] * 3
    assert owner(place) == 0


@as_root
def test_what_a_worker_of_root_s_left_is_given_away_with_it(place: Path) -> None:
    shard = place / "models" / "Wan-AI--Wan2.2-I2V-A14B-Diffusers" / "abc" / "transformer" / "shard.safetensors"
    job = place / "state" / "jobs" / "1.json"
    for path in (shard, job):
        path.parent.mkdir(parents=True)
        path.write_text("root's")
        path.chmod(0o600)
    done = enter(place, "/bin/cat", str(shard), str(job), environment=models_and_state(place))
    assert (done.stdout, done.stderr) == ("root'sroot's", "")
    assert {owner(path) for path in (shard, shard.parent, shard.parents[2], job)} == {1000}


@as_root
def test_what_others_keep_there_is_left_alone(place: Path) -> None:
    others = [place / "models" / "checkpoints" / "sd.safetensors", place / "models" / "readme.txt"]
    strangers = place / "models" / "Somebody--Else" / "file"
    for path in (*others, strangers):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    os.chown(strangers.parent, 4242, 4242)
    (place / "models" / "loras").symlink_to("/etc")
    done = enter(place, "/bin/true", environment=models_and_state(place))
    assert (done.returncode, done.stderr) == (0, "")
    assert [owner(path) for path in (*others, others[0].parent)] == [0, 0, 0]
    assert owner(strangers.parent) == 4242
    assert owner(strangers) == 0
    assert owner(Path("/etc")) == 0


@as_root
def test_a_folder_of_another_user_keeps_the_worker_root_and_says_so(place: Path) -> None:
    state = place / "state"
    state.mkdir(mode=0o700)
    os.chown(state, 4242, 4242)
    done = enter(place, _python(), "-c", REPORT, environment=models_and_state(place))
    assert json.loads(done.stdout)["uid"] == 0
    assert f"going on as root: {state} is not open to uid 1000 (it belongs to another user)" in done.stderr
    assert f"chown -R 1000:1000 {state}" in done.stderr
    assert owner(state) == 4242


@as_root
def test_a_folder_of_another_user_that_is_open_to_all_is_no_reason(place: Path) -> None:
    state = place / "state"
    state.mkdir()
    os.chown(state, 4242, 4242)
    state.chmod(0o777)
    done = enter(place, _python(), "-c", REPORT, environment=models_and_state(place))
    assert json.loads(done.stdout)["uid"] == 1000
    assert done.stderr == ""


@as_root
@pytest.mark.parametrize("entries", [3, 4])
def test_no_more_than_the_limit_is_walked(place: Path, entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder jobs and its files; the folder itself is not counted."""
    monkeypatch.setattr(entrypoint, "MOST_ENTRIES", 4)
    jobs = place / "state" / "jobs"
    jobs.mkdir(parents=True)
    for number in range(entries):
        (jobs / f"{number}.json").touch()
    os.chown(place / "state", 0, 0)
    problem = entrypoint.give_away(place / "state")
    if entries == 3:
        assert problem is None
        assert owner(jobs) == 1000
    else:
        assert problem is not None
        assert "it holds more than 4 entries of root's" in problem
        assert owner(jobs) == 0


@as_root
def test_where_root_cannot_write_either_nothing_is_said() -> None:
    """The worker says itself what it means that it cannot write; being root would not help."""
    read_only = Path("/proc/sys/models")
    assert entrypoint.give_away(read_only) is None


@as_root
def test_without_the_right_to_change_users_it_goes_on_as_root(place: Path) -> None:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("needs setpriv of util-linux")
    limited = [setpriv, "--bounding-set=-setuid,-setgid", "--inh-caps=-setuid,-setgid"]
    command = [*limited, _python(), "-I", "-S", str(ENTRY), _python(), "-c", REPORT]
    variables = {"PATH": os.environ["PATH"], **models_and_state(place)}
    done = subprocess.run(command, env=variables, cwd=place, capture_output=True, text=True, timeout=60, check=False)
    assert json.loads(done.stdout)["uid"] == 0
    assert "going on as root: this container may not change its user (Operation not permitted)" in done.stderr


@as_root
def test_another_user_only_executes_and_names_what_is_closed(place: Path) -> None:
    (place / "state").mkdir()
    (place / "models").mkdir(mode=0o777)
    (place / "models").chmod(0o777)
    environment = {**models_and_state(place), "OUTPUT_DIR": "/tmp"}
    done = enter(place, _python(), "-c", REPORT, environment=environment, user=1000)
    assert json.loads(done.stdout)["uid"] == 1000
    assert done.stderr.startswith(f"entrypoint: uid 1000 cannot write to {place / 'state'}. Do once, as root")
    assert done.stderr.count("\n") == 1
    assert owner(place / "state") == 0


def test_a_command_that_is_not_there_is_named(place: Path) -> None:
    done = enter(place, "no-such-command", environment=models_and_state(place))
    assert done.returncode == 1
    assert "no-such-command cannot be executed: No such file or directory" in done.stderr


def test_no_command_is_an_error(place: Path) -> None:
    done = enter(place)
    assert done.returncode == 1
    assert "no command was given" in done.stderr


@pytest.mark.parametrize("pod", [True, False])
@pytest.mark.parametrize("serverless", [True, False])
@pytest.mark.parametrize("models", [None, "", "elsewhere/models", "pod/weights"])
@pytest.mark.parametrize("state", [None, "elsewhere/state"])
def test_its_folders_are_those_of_the_worker(
    pod: bool, serverless: bool, models: str | None, state: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = {"POD_VOLUME": tmp_path / "pod", "SERVERLESS_VOLUME": tmp_path / "serverless"}
    for name, folder in volumes.items():
        monkeypatch.setattr(entrypoint, name, folder)
        monkeypatch.setattr(folders, name, folder)
    for folder, exists in zip(volumes.values(), (pod, serverless), strict=True):
        if exists:
            folder.mkdir()
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    environment = {"OUTPUT_DIR": str(home / "outputs")}
    if models is not None:
        environment["MODEL_CACHE_DIR"] = str(tmp_path / models) if models else ""
    if state is not None:
        environment["STATE_DIR"] = str(tmp_path / state)
    for name in ("MODEL_CACHE_DIR", "STATE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    wanted = {folders.model_cache_dir(settings), folders.state_dir(settings).absolute()}
    found = {folder.absolute() for folder in entrypoint.own_folders(environment)}
    # Its home, and the image's ./.state, are the worker's anyway.
    assert {folder for folder in wanted if not folder.is_relative_to(home) and folder.name != ".state"} == {
        folder for folder in found if not folder.is_relative_to(home)
    }
    assert home / "outputs" in found


def test_it_knows_every_folder_that_the_worker_makes_in_its_state() -> None:
    source = "\n".join(path.read_text() for path in (ENTRY.parents[1] / "worker").rglob("*.py"))
    for name in ("jobs", "outbox", "spool", "locks", "loras", ".locks"):
        assert f'"{name}"' in source, name
        assert name in entrypoint.OWN_NAMES


def test_it_starts_without_any_package(place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-X", "importtime", str(ENTRY), "true"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"PATH": "/usr/bin:/bin", **models_and_state(place)},
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "ctypes" in imported
    assert imported & {"pydantic", "torch", "worker", "builder"} == set()
