"""What is known of a model folder, kept in it as `videogen.json`.

A record is written atomically: a reader sees the old one or the new one, never half of one. A record that cannot be
read counts as none.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from worker.base.files import write_atomically

logger = logging.getLogger(__name__)

RECORD_NAME = "videogen.json"
Dtype = Literal["bf16", "fp8"]
# Where a folder can be under a model cache: PLAIN, ORG/PLAIN or ORG--NAME/REVISION, and the hub client's own layout.
_RECORD_PLACES = (f"*/{RECORD_NAME}", f"*/*/{RECORD_NAME}", f"*/snapshots/*/{RECORD_NAME}")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """`size`: bytes. `sha256`: None where it was never computed. `blocks`: (offset, blake2b of the block there)."""

    size: int
    sha256: str | None
    blocks: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Record:
    """`revision`: the hub's commit, None where unknown. `requested`: the branch or tag that was asked for.

    `complete` is False while a download is under way: a folder is used only when it is True. `dtype`: what the experts
    were converted to, None for the originals; `fp8` means that the 2-D weights of the blocks are stored as
    float8_e4m3fn without a scale, and are to be cast when they are used. `fused`: the repository of the LoRAs that were
    fused into the experts, None where none were.
    """

    repo: str
    revision: str | None = None
    requested: str | None = None
    complete: bool = True
    dtype: Dtype | None = None
    fused: str | None = None
    files: Mapping[str, FileRecord] = field(default_factory=dict)

    def with_file(self, path: str, entry: FileRecord) -> Record:
        return replace(self, files={**self.files, path: entry})


_ADAPTER = TypeAdapter(Record)


def read(folder: Path) -> Record | None:
    """The record of a folder, or None where there is none that can be read."""
    try:
        return _ADAPTER.validate_json((folder / RECORD_NAME).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as failure:
        logger.warning("the record %s cannot be read and is ignored (%s)", folder / RECORD_NAME, type(failure).__name__)
        return None


def write(folder: Path, record: Record) -> None:
    """Replace the folder's record by `record`. Raises OSError."""
    write_atomically(folder / RECORD_NAME, _ADAPTER.dump_json(record, indent=1), mode=0o666)


def recorded_folders(cache_dir: Path) -> Iterator[tuple[Path, Record]]:
    """Every folder of a model cache that has a record, unfinished downloads included."""
    for place in _RECORD_PLACES:
        for path in sorted(cache_dir.glob(place)):
            if (record := read(path.parent)) is not None:
                yield path.parent, record
