"""Tries a built image as a careful operator would run it: `make image-test`, or `python -m builder.try_image IMAGE`.

Needs docker or podman, and only the standard library here. Each check runs the image again, with a read-only root
and a volume as the only place to write to beside /tmp:

    video      as uid 1000 without any capability: the demo job makes its video, and nothing else can be written
    volume     as root with a volume of root's: the folders are opened, and the worker is uid 1000, process 1
    terminate  on a double of RunPod's platform: `kill -TERM 1` ends it, within the grace during a job and at once else
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.kits.platform_double import Platform

ROOT = Path(__file__).resolve().parent.parent
UNPRIVILEGED = ("--user", "1000:1000", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
GRACE_S = 4.0
# What the worker needs beside its grace to end a denoising step, to leave the platform and to exit on a busy machine.
LEAVES_WITHIN_S = 15.0
READY_WITHIN_S = 120.0
CALL_TAKES_S = 300.0
_COUNT = "import imageio_ffmpeg, sys; print(imageio_ffmpeg.count_frames_and_secs(sys.argv[1])[0])"
_WHO = (
    "import json, os; status = dict(line.split(':', 1) for line in open('/proc/self/status')); "
    "print(json.dumps({'pid': os.getpid(), 'uid': os.getuid(), 'no_new_privileges': status['NoNewPrivs'].strip(), "
    "'owners': {name: os.stat('/workspace/' + name).st_uid for name in ('models', 'state')}}))"
)
_TAKEN = "import sys; open(sys.argv[1], 'w')"


class Failed(Exception):
    """A check did not hold."""


class Engine:
    """docker or podman, and the volume that every container gets."""

    def __init__(self, command: Sequence[str], run_options: Sequence[str], image: str, volume: Path) -> None:
        self.volume = volume
        self._command, self._run_options, self._image = command, run_options, image

    def call(
        self, *arguments: str, check: bool = True, timeout_s: float = CALL_TAKES_S
    ) -> subprocess.CompletedProcess[str]:
        command = [*self._command, *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
        except subprocess.TimeoutExpired as failure:
            raise Failed(f"{shlex.join(arguments)}: not within {timeout_s:g} s") from failure
        if check and done.returncode != 0:
            raise Failed(f"{shlex.join(arguments)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def run(self, options: Sequence[str], command: Sequence[str] = (), *, check: bool = True) -> str:
        """What the command (the image's own without one) says; where it may fail and does, what it complains of."""
        done = self.call(*self._run(("--rm", *options)), *command, check=check)
        return done.stdout.strip() if done.returncode == 0 else done.stderr

    @contextmanager
    def running(self, options: Sequence[str]) -> Iterator[str]:
        """The image's own command in the background; answers the container's id."""
        container = self.call(*self._run(("--detach", *options))).stdout.strip()
        try:
            yield container
        finally:
            self.call("rm", "--force", container, check=False)

    def _run(self, options: Sequence[str]) -> list[str]:
        fixed = ["--read-only", "--tmpfs", "/tmp", "--no-healthcheck", "--volume", f"{self.volume}:/workspace"]
        return ["run", *self._run_options, *fixed, "--env", "OUTPUT_DIR=/workspace/outputs", *options, self._image]


def video(engine: Engine) -> str:
    """The demo job as nobody in particular: every video of test_input.json."""
    job = json.loads((ROOT / "test_input.json").read_text(encoding="utf-8"))
    expected = [request["num_frames"] for request in job["input"]["job_request_params"]]
    started = time.monotonic()
    engine.run(UNPRIVILEGED)
    took_s = time.monotonic() - started
    made = sorted(path.relative_to(engine.volume) for path in engine.volume.rglob("*.mp4"))
    frames = [int(engine.run(UNPRIVILEGED, ("python", "-c", _COUNT, f"/workspace/{path}"))) for path in made]
    if frames != expected:
        raise Failed(f"the volume holds videos of {frames} frames instead of {expected}")
    for place in ("/app/new", "/opt/venv/new", "/home/worker/new", "/usr/new"):
        if "Read-only" not in engine.run((), ("python", "-c", _TAKEN, place), check=False):
            raise Failed(f"{place} can be written")
    size_kb = sum((engine.volume / path).stat().st_size for path in made) / 1000
    told = f"{took_s:.1f} s, {len(made)} videos, {size_kb:.0f} kB, {sum(frames)} frames"
    return f"{told}; nothing outside the volume and /tmp can be written"


def volume_of_root(engine: Engine) -> str:
    """As on RunPod: the container starts as root and the volume is root's."""
    engine.run(("--user", "0", "--entrypoint", "chown"), ("0:0", "/workspace"))
    engine.run(("--user", "0", "--entrypoint", "chmod"), ("755", "/workspace"))
    started = time.monotonic()
    found = json.loads(engine.run(("--user", "0"), ("python", "-c", _WHO)))
    took_s = time.monotonic() - started
    wanted = {"pid": 1, "uid": 1000, "no_new_privileges": "1", "owners": {"models": 1000, "state": 1000}}
    if found != wanted:
        raise Failed(f"{found} instead of {wanted}")
    engine.run(("--user", "0", "--entrypoint", "chmod"), ("777", "/workspace"))
    return f"the folders are uid 1000's, and so is process 1, without new privileges ({took_s:.1f} s in all)"


def terminate(engine: Engine) -> str:
    """`kill -TERM 1` inside, as RunPod's own signal would arrive. 143 is the status of a start that was stopped."""
    long = {"prompt": "a boat", "height": 256, "width": 448, "num_frames": 161, "num_inference_steps": 100}
    with Platform() as platform:

        def ready(worker_id: str, container: str) -> None:
            platform.wait_for(lambda: platform.has_polled(worker_id), READY_WITHIN_S, "the container is not ready")
            engine.call("exec", container, "grep", "-q", "^State:.[RSDI]", "/proc/1/status")  # the image's HEALTHCHECK

        def during_a_job(worker_id: str, container: str) -> None:
            ready(worker_id, container)
            platform.wait_taken(platform.submit({"job_id": "try-image", **long}), READY_WITHIN_S)
            time.sleep(2.0)  # into the denoising

        busy_s = _ends_after(engine, platform, during_a_job, GRACE_S, status="0")
        idle_s = _ends_after(engine, platform, ready, 0.0, status="0")
        start_s = _ends_after(engine, platform, lambda *_: time.sleep(2.0), 0.0, status="143")
    return (
        f"ended after {busy_s:.1f} s during a job (grace {GRACE_S:g} s), {idle_s:.1f} s idle, {start_s:.1f} s at start"
    )


def _ends_after(
    engine: Engine, platform: Platform, begin: Callable[[str, str], None], grace_s: float, *, status: str
) -> float:
    """Seconds from the signal to the container's end; `begin` gets the worker's id and the container's."""
    worker_id = f"try-image-{uuid.uuid4().hex[:8]}"
    variables = {**platform.environment(worker_id), "MODEL_PROFILE": "demo", "SHUTDOWN_GRACE_S": f"{GRACE_S:g}"}
    environment = [word for key, value in variables.items() for word in ("--env", f"{key}={value}")]
    with engine.running(("--network", "host", *UNPRIVILEGED, *environment)) as container:
        begin(worker_id, container)
        engine.call("exec", container, "sh", "-c", "kill -TERM 1")
        signalled = time.monotonic()
        ended = engine.call("wait", container, timeout_s=grace_s + LEAVES_WITHIN_S)
        took_s = time.monotonic() - signalled
        if ended.returncode != 0 or ended.stdout.strip() != status:
            log = engine.call("logs", container)
            raise Failed(f"exit status {ended.stdout.strip()} after {took_s:.1f} s\n{log.stdout}{log.stderr}")
    return took_s


CHECKS: dict[str, Callable[[Engine], str]] = {"video": video, "volume": volume_of_root, "terminate": terminate}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    command = shlex.split(options.engine) if options.engine is not None else _engine_here()
    if not command:
        print("needs docker or podman, and neither works here", file=sys.stderr)
        return 1
    failed = False
    for name in options.only or CHECKS:
        with tempfile.TemporaryDirectory(prefix="try-image-") as folder:
            volume = Path(folder)
            volume.chmod(0o777)
            engine = Engine(command, shlex.split(options.run_options), options.image, volume)
            try:
                print(f"ok    {name}: {CHECKS[name](engine)}", flush=True)
            except (Failed, TimeoutError) as failure:
                failed = True
                print(f"FAIL  {name}: {failure}", flush=True)
            finally:
                # What uid 1000 wrote only uid 1000, or root, can remove.
                engine.run(("--user", "0", "--entrypoint", "sh"), ("-c", "rm -rf /workspace/*"), check=False)
    return 1 if failed else 0


def _engine_here() -> list[str]:
    for name in ("docker", "podman"):
        try:
            if subprocess.run([name, "info"], capture_output=True, check=False).returncode == 0:
                return [name]
        except FileNotFoundError:
            continue
    return []


def _parser() -> argparse.ArgumentParser:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    parser = argparse.ArgumentParser(prog="python -m builder.try_image", description="Try a built image.")
    parser.add_argument("image", nargs="?", default=f"videogen-runpod:{version}")
    parser.add_argument("--engine", help="docker, podman, or such as 'podman --runtime runc'; default: what works here")
    parser.add_argument("--run-options", default="", help="further options of every `run`, in one word")
    parser.add_argument("--only", action="append", choices=tuple(CHECKS), help="one check; may be repeated")
    return parser


if __name__ == "__main__":
    sys.exit(main())
