"""Why a folder cannot be used, and what to do about it, from the number of an OSError."""

from __future__ import annotations

import errno

_SPACE = "free space there or enlarge it"
_PERMISSION = "give the worker's user permission (chown, or a writable mount)"
_FOLDER = "name another folder"
_REASONS = {
    errno.ENOSPC: ("is full", _SPACE),
    errno.EDQUOT: ("has used up its quota", "delete from the volume or enlarge it; df does not show a quota"),
    errno.EFBIG: ("takes no file of this size", "use another volume"),
    errno.EROFS: ("is read-only", "mount it writable"),
    errno.EACCES: ("may not be written to", _PERMISSION),
    errno.EPERM: ("may not be written to", _PERMISSION),
    errno.ENOLCK: ("has no file locks (flock)", "use another volume"),
    errno.ENOSYS: ("has no file locks (flock)", "use another volume"),
    errno.ENOTSUP: ("has no file locks (flock)", "use another volume"),
    errno.EEXIST: ("is not a folder", _FOLDER),
    errno.EISDIR: ("is not a folder", _FOLDER),
    errno.ENOTDIR: ("is not a folder", _FOLDER),
    errno.EIO: ("fails with an input/output error", "check the volume, or use another one"),
}


def reason_of(failure: OSError) -> tuple[str, str]:
    """How a sentence about the folder goes on ("is full"), and the advice that follows it. Neither holds a path."""
    unknown = (
        f"cannot be used ({errno.errorcode.get(failure.errno or 0, type(failure).__name__)})",
        "check the folder",
    )
    return _REASONS.get(failure.errno or 0, unknown)
