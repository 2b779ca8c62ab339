from __future__ import annotations

import errno
import os

import httpx2
import pytest

from worker.base.errors import Cancelled, ModelUnavailable
from worker.weights.hub.failures import TRANSLATED, is_transient, unavailable


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "is full: free space"),
        (errno.EDQUOT, "has used up its quota: delete from the volume"),
        (errno.EROFS, "is read-only: mount it writable"),
        (errno.EACCES, "may not be written to: give the worker's user permission"),
        (errno.EPERM, "may not be written to: give the worker's user permission"),
        (errno.ENOSYS, "has no file locks (flock): use another volume"),
        (errno.EFBIG, "takes no file of this size: use another volume"),
        (errno.ENOTDIR, "is not a folder: name another folder"),
        (errno.EIO, "fails with an input/output error: check the volume"),
        (errno.ESTALE, "cannot be used (ESTALE): check the folder"),
        (None, "cannot be used (OSError): check the folder"),
    ],
)
def test_every_failure_of_the_volume_is_one_sentence_without_a_path(number: int | None, words: str) -> None:
    failure = OSError("odd") if number is None else OSError(number, os.strerror(number), "/volume/models/secret")
    told = unavailable(failure, "org/name", has_token=False)
    assert isinstance(told, ModelUnavailable)
    assert str(told).startswith(f"org/name: MODEL_CACHE_DIR {words}")
    assert "/volume" not in str(told)


def test_a_defect_is_not_taken_for_a_failure_of_the_hub() -> None:
    assert not issubclass(KeyError, TRANSLATED)
    assert not issubclass(Cancelled, TRANSLATED)


def test_what_asking_again_may_help() -> None:
    assert is_transient(httpx2.ConnectError("refused"))
    assert is_transient(httpx2.ReadTimeout("slow"))
    assert not is_transient(httpx2.UnsupportedProtocol("ftp"))
    assert not is_transient(OSError(errno.ENOSPC, "full"))
