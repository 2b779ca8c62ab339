"""The container's entry: opens the worker's folders, becomes the unprivileged user, and turns into the command.

    python -I -S entrypoint.py COMMAND...

A RunPod volume belongs to root, and serverless lets nobody choose the container's user. So the image starts as root;
this gives the worker's own folders to uid 1000, drops root for good and executes the command, which keeps the
process id. Where a folder cannot be given away it says why and goes on as root. Where it is not root to begin with it
only says what that user cannot write to. Nothing but the standard library: it costs some 20 ms. The reasons are in
docs/decisions/0012.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

UID = GID = 1000
POD_VOLUME = Path("/workspace")
SERVERLESS_VOLUME = Path("/runpod-volume")
# What the worker makes in its folders, beside a folder ORG--NAME for each model. Nothing else is given away.
OWN_NAMES = frozenset({".locks", "loras", "jobs", "locks", "outbox", "spool"})
# What is given away at one start, at most.
MOST_ENTRIES = 20_000
_NO_NEW_PRIVILEGES = 38  # prctl(2), PR_SET_NO_NEW_PRIVS


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    command = list(sys.argv[1:] if arguments is None else arguments)
    if not command:
        sys.exit("entrypoint: no command was given; the image's own is: python -u handler.py")
    folders = own_folders(os.environ)
    if os.geteuid() == 0:
        problems = [problem for folder in folders if (problem := give_away(folder)) is not None]
        problems = problems or [problem for problem in (become_unprivileged(),) if problem is not None]
        if problems:
            _say(f"going on as root: {'; '.join(problems)}")
    else:
        for folder in folders:
            if (problem := closed(folder)) is not None:
                _say(problem)
    try:
        os.execvp(command[0], command)
    except OSError as failure:
        sys.exit(f"entrypoint: {command[0]} cannot be executed: {failure.strerror}")


def own_folders(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Where the worker will write beside /tmp and its home: what `worker.base.folders` answers for these variables."""
    given = {name.upper(): value for name, value in environment.items() if value}
    models, on_volume = Path(given.get("MODEL_CACHE_DIR", POD_VOLUME / "models")), "MODEL_CACHE_DIR" in given
    if models.is_relative_to(POD_VOLUME):
        on_volume = on_volume or POD_VOLUME.is_dir() or SERVERLESS_VOLUME.is_dir()
        if not POD_VOLUME.is_dir():
            models = SERVERLESS_VOLUME / models.relative_to(POD_VOLUME)
            if not SERVERLESS_VOLUME.is_dir():
                models, on_volume = Path.home(), False
    state = given.get("STATE_DIR", models.parent / "state" if on_volume else None)
    found = [models if on_volume else None, state, given.get("OUTPUT_DIR", "./outputs")]
    return tuple(Path(folder) for folder in found if folder is not None)


def give_away(folder: Path) -> str | None:
    """Make and open the folder for uid 1000, or answer why only root can write there.

    None too where root cannot write either, such as on a read-only volume: the worker itself says what that means.
    """
    reason = "it belongs to another user"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for entry in _owned_by_root(folder):
            os.chown(entry, UID, GID, follow_symlinks=False)
    except OSError as failure:
        reason = failure.strerror or str(failure)
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            return None
    else:
        if not os.access(folder, os.W_OK | os.X_OK) or _unprivileged_can_write(folder):
            return None
    return f"{folder} is not open to uid {UID} ({reason}). {_advice(folder)}"


def closed(folder: Path) -> str | None:
    """Why this process, which is not root, cannot write to the folder; None where it can, or nobody could."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if os.access(nearest, os.W_OK | os.X_OK) or os.statvfs(nearest).f_flag & os.ST_RDONLY:
        return None
    return f"uid {os.geteuid()} cannot write to {folder}. {_advice(folder)}"


def _advice(folder: Path) -> str:
    place = folder.absolute()
    return f"Do once, as root, where it is mounted: mkdir -p {place} && chown -R {UID}:{GID} {place}"


def _owned_by_root(folder: Path) -> Iterator[Path]:
    """What belongs to root: the folder, and what a worker that ran as root made inside. Raises OSError."""
    made = [path for path in folder.iterdir() if path.name in OWN_NAMES or "--" in path.name]
    # A tree was made by one user: one that begins with another owner is not walked.
    trees = [path for path in made if path.lstat().st_uid == 0]
    entries = (folder, *(entry for tree in trees for entry in _tree(tree)))
    for count, entry in enumerate(entries):
        if count > MOST_ENTRIES:
            raise OSError(f"it holds more than {MOST_ENTRIES} entries of root's")
        if entry.lstat().st_uid == 0:
            yield entry


def _tree(top: Path) -> Iterator[Path]:
    """The entry and, where it is a folder, all below; links are not followed."""
    if not top.is_symlink():
        for parent, folders, files in os.walk(top):
            yield from (Path(parent, name) for name in (*folders, *files))
    # Last: a start that was cut short walks the tree again.
    yield top


def _unprivileged_can_write(folder: Path) -> bool:
    """Asks the kernel as that user: a network file system may have rules of its own."""
    groups = os.getgroups()
    try:
        os.setgroups([])
        os.setegid(GID)
        os.seteuid(UID)
        return os.access(folder, os.W_OK | os.X_OK, effective_ids=True)
    except OSError:
        return True  # this container may not change its user, which `become_unprivileged` says
    finally:
        os.seteuid(0)
        os.setegid(0)
        with suppress(OSError):
            os.setgroups(groups)


def become_unprivileged() -> str | None:
    """Drop root for good, setuid programs included; or return why that cannot be done."""
    try:
        os.setgroups([])
        os.setgid(GID)
        os.setuid(UID)
    except OSError as failure:
        return f"this container may not change its user ({failure.strerror})"
    ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    return None


def _say(text: str) -> None:
    sys.stderr.write(f"entrypoint: {text}\n")


if __name__ == "__main__":
    main()
