from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.kits.tiny_repo import tiny_repos
from worker.base.files import sha256_of
from worker.base.log import current_job_id, job_scope
from worker.weights import check, verify
from worker.weights.folder import check as integrity
from worker.weights.folder import record as records

SHARD = "transformer/diffusion_pytorch_model-00002-of-00006.safetensors"
TOKENIZER = "tokenizer/tokenizer.json"
VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_repos() / "i2v", tmp_path / "model"))


def keep_record(folder: Path) -> None:
    records.write(folder, integrity.make_record(folder, repo="org/name", revision=None))


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        value = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([value ^ 1]))


def zero_tail(path: Path, count: int) -> None:
    size = path.stat().st_size
    os.truncate(path, size - count)
    os.truncate(path, size)


def test_a_whole_folder_has_no_problem_with_and_without_a_record(folder: Path) -> None:
    assert check(folder) == []
    keep_record(folder)
    assert check(folder) == []
    assert verify(folder) == []


def test_a_record_lists_what_a_pipeline_needs_and_no_more(folder: Path) -> None:
    names = set(integrity.make_record(folder, repo="org/name", revision=None).files)
    assert {"model_index.json", SHARD, VAE, "tokenizer/tokenizer.json", "scheduler/scheduler_config.json"} <= names
    assert not {name for name in names if name.startswith("assets") or name.endswith(".md")}


def test_the_readers_work_within_the_job_that_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they log carries its id."""
    jobs: list[tuple[bool, str | None]] = []
    for name in ("describe_file", "damage_of"):
        original = getattr(integrity, name)

        def noting(*arguments: object, original: Callable[..., object] = original, **named: object) -> object:
            jobs.append((threading.current_thread() is threading.main_thread(), current_job_id()))
            return original(*arguments, **named)

        monkeypatch.setattr(integrity, name, noting)
    with job_scope("job-1"):
        keep_record(folder)
        described = len(jobs)
        assert check(folder) == []
    assert set(jobs) == {(False, "job-1")}
    assert len(jobs) == 2 * described > 2


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    os.truncate(path, path.stat().st_size + 1)


def damage_header(path: Path) -> None:
    flip(path, 8)


def empty(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(
    ("file", "harm"),
    [
        (SHARD, truncate),
        (SHARD, lengthen),
        (SHARD, damage_header),
        (SHARD, empty),
        (SHARD, Path.unlink),
        (SHARD, lambda path: zero_tail(path, 100_000)),
        (VAE, truncate),
        (VAE, Path.unlink),
        ("text_encoder/model-00001-of-00002.safetensors", truncate),
        ("text_encoder/config.json", Path.unlink),
        ("text_encoder/model.safetensors.index.json", empty),
        ("tokenizer/tokenizer_config.json", Path.unlink),
        ("scheduler/scheduler_config.json", empty),
        ("model_index.json", Path.unlink),
        ("model_index.json", empty),
    ],
)
def test_damage_is_found_and_names_the_file(
    folder: Path, file: str, harm: Callable[[Path], None], recorded: bool
) -> None:
    if recorded:
        keep_record(folder)
    harm(folder / file)
    problems = check(folder)
    named = {problem.partition(": ")[0] for problem in problems}
    if file == VAE and harm is Path.unlink:
        # Without a record nothing says what the only file of weights was called.
        assert named == {"vae/*.safetensors", *({VAE} if recorded else ())}
    else:
        assert named == {file}


def test_a_flipped_bit_in_a_recorded_block_is_found(folder: Path) -> None:
    keep_record(folder)
    size = (folder / SHARD).stat().st_size
    for offset in (20_000, size // 2, size - 1):
        flip(folder / SHARD, offset)
        assert [problem.partition(":")[0] for problem in check(folder)] == [SHARD]
        flip(folder / SHARD, offset)
        assert check(folder) == []


@pytest.mark.parametrize("harm", [lengthen, truncate])
def test_a_file_of_another_length_than_recorded_is_found(folder: Path, harm: Callable[[Path], None]) -> None:
    """One whose length nothing else tells: every recorded block of it is as it was."""
    keep_record(folder)
    size = (folder / TOKENIZER).stat().st_size
    harm(folder / TOKENIZER)
    changed = size + (1 if harm is lengthen else -1)
    assert check(folder) == [f"{TOKENIZER}: it has {changed} bytes instead of {size}"]


def test_a_short_zero_tail_is_found_by_the_record(folder: Path) -> None:
    keep_record(folder)
    zero_tail(folder / SHARD, 16)
    assert [problem.partition(":")[0] for problem in check(folder)] == [SHARD]


def test_the_zero_tail_rule_needs_a_whole_block_of_zeros(tmp_path: Path) -> None:
    block = integrity.BLOCK_BYTES
    for zeros, found in ((block - 1, None), (block, "it ends in zeros")):
        save_file({"weight": np.array([1] * block + [0] * zeros, dtype=np.uint8)}, tmp_path / "shard.safetensors")
        assert integrity.shard_damage(tmp_path / "shard.safetensors", {"weight"}) == found


def test_a_shard_must_hold_what_the_index_promises(folder: Path) -> None:
    index = folder / "transformer/diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["blocks.99.weight"] = SHARD.rpartition("/")[2]
    index.write_text(json.dumps(content))
    assert check(folder) == [f"{SHARD}: it lacks 1 tensors that the index promises"]


def test_the_full_check_finds_a_bit_between_the_blocks(folder: Path) -> None:
    record = integrity.make_record(folder, repo="org/name", revision=None)
    entry = record.files[SHARD]
    sha256 = sha256_of(folder / SHARD)
    apart = (entry.blocks[0], entry.blocks[-1])  # as far as the blocks of a file of 5 GB are
    records.write(folder, record.with_file(SHARD, records.FileRecord(entry.size, sha256, apart)))
    flip(folder / SHARD, entry.size // 2)
    assert check(folder) == []
    assert verify(folder) == [f"{SHARD}: the content is not what the hub has (sha256)"]


def test_a_blob_of_the_hub_clients_layout_is_known_by_its_name(folder: Path) -> None:
    sha256 = sha256_of(folder / VAE)
    blob = folder.parent / "blobs" / sha256
    blob.parent.mkdir()
    (folder / VAE).rename(blob)
    (folder / VAE).symlink_to(blob)
    assert verify(folder) == []
    flip(blob, blob.stat().st_size // 2)
    assert verify(folder) == [f"{VAE}: the content is not what the hub has (sha256)"]


def test_an_unfinished_download_is_a_problem(folder: Path) -> None:
    records.write(folder, records.Record("org/name", complete=False))
    assert check(folder) == ["videogen.json: the download is not finished"]


def test_the_cheap_check_reads_little(folder: Path) -> None:
    big = folder / "big"
    with big.open("wb") as file:
        file.truncate(50_000_000_000)
    entry = integrity.describe_file(big, sha256=None)
    assert entry.blocks[0][0] == 0
    assert entry.blocks[-1][0] == entry.size - integrity.BLOCK_BYTES
    assert len(entry.blocks) == integrity.BLOCKS_PER_FILE
    assert integrity.damage_of(big, entry) is None
