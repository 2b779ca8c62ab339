"""One copy of the same content on a volume: hard links between model folders."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from worker.base.files import replacing, sha256_of
from worker.weights.folder import record as records
from worker.weights.folder.check import damage_of, describe_file
from worker.weights.folder.places import ModelCache
from worker.weights.folder.record import FileRecord

logger = logging.getLogger(__name__)

_NO_LINKS = frozenset(
    {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
)


def find_copy(
    cache: ModelCache, sha256: str, size: int, *, other_than: Path | None = None
) -> tuple[Path, FileRecord] | None:
    """A file with that content in the cache or RunPod's, and its record; None where none is intact.

    Files that a record describes are checked by their sampled blocks; blobs of the hub client's layout, which have
    the sha256 as their name, are read whole. `other_than`: a damaged file, whose other hard links do not count.
    """
    for path, entry in _copies(sha256, (cache.folder, cache.runpod)):
        if not path.is_file() or path.stat().st_size != size:
            continue
        if other_than is not None and other_than.exists() and path.samefile(other_than):
            continue
        if entry is not None and damage_of(path, entry) is None:
            return path, entry
        if entry is None and sha256_of(path) == sha256:
            return path, describe_file(path, sha256=sha256)
    return None


def _copies(sha256: str, caches: Sequence[Path]) -> Iterator[tuple[Path, FileRecord | None]]:
    for cache in caches:
        for folder, record in records.recorded_folders(cache):
            for path, entry in record.files.items():
                if entry.sha256 == sha256:
                    yield folder / path, entry
    for cache in caches:
        yield from ((blob, None) for blob in cache.glob(f"models--*/blobs/{sha256}"))


def link(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, or a copy where the file system has no links between the two.

    Atomic: `target` is whole or not there. Raises OSError.
    """
    with replacing(target, lasting=False) as fresh:
        try:
            os.link(source.resolve(), fresh)
        except OSError as failure:
            if failure.errno not in _NO_LINKS:
                raise
            logger.info("the volume takes no hard link for %s; it is copied", target.name)
            shutil.copyfile(source, fresh)
