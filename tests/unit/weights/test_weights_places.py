from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.kits.weights_kit import place
from worker.weights import ModelFolder, diffusers_repo
from worker.weights.folder import record as records
from worker.weights.folder.record import Record

I2V = "Wan-AI/Wan2.2-I2V-A14B"
TWIN = "Wan-AI/Wan2.2-I2V-A14B-Diffusers"
HOME = "Wan-AI--Wan2.2-I2V-A14B-Diffusers"
OLD, NEW = "a" * 40, "b" * 40


def put(folder: Path, record: Record | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    if record is not None:
        records.write(folder, record)
    return folder


def find(cache: Path, model_id: str = I2V, **options: Any) -> ModelFolder | None:
    return place(cache).locate(model_id, **options)


@pytest.mark.parametrize(
    ("model_id", "repo"),
    [
        (I2V, TWIN),
        ("Wan-AI/Wan2.2-T2V-A14B", "Wan-AI/Wan2.2-T2V-A14B-Diffusers"),
        ("Wan-AI/Wan2.2-TI2V-5B", "Wan-AI/Wan2.2-TI2V-5B-Diffusers"),
        (TWIN, TWIN),
        ("someone/Wan2.2-I2V-A14B", "someone/Wan2.2-I2V-A14B"),
    ],
)
def test_original_ids_resolve_to_their_twin_and_others_stay(model_id: str, repo: str) -> None:
    assert diffusers_repo(model_id) == repo


def test_the_twin_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model_id = f"{I2V}//"  # which no other test of this process names
    with caplog.at_level(logging.INFO, logger="worker"):
        assert [diffusers_repo(model_id) for _ in range(2)] == [TWIN, TWIN]
    assert [record.message for record in caplog.records] == [
        f"{model_id} is in Wan's own format; its Diffusers twin {TWIN} is used"
    ]


@pytest.mark.parametrize(
    "name",
    [
        "Wan2.2-I2V-A14B-Diffusers",
        TWIN,
        HOME,
        "Wan2.2-I2V-A14B",
        I2V,
    ],
)
def test_folders_that_users_put_there_are_found(cache: Path, name: str) -> None:
    folder = put(cache / name)
    assert find(cache) == ModelFolder(folder, TWIN, None, "cache")


@pytest.mark.parametrize("root", ["", "hub"])
def test_the_hub_clients_layout_is_found_with_the_snapshot_of_main(cache: Path, root: str) -> None:
    repo = cache / root / "models--Wan-AI--Wan2.2-I2V-A14B-Diffusers"
    put(repo / "snapshots" / OLD)
    put(repo / "snapshots" / NEW)
    (repo / "refs").mkdir()
    for main in (OLD, NEW):
        (repo / "refs" / "main").write_text(main)
        assert find(cache) == ModelFolder(repo / "snapshots" / main, TWIN, main, "cache")


def test_runpods_cached_model_is_found_after_the_cache(cache: Path) -> None:
    snapshot = put(cache.parent / "runpod" / "models--Wan-AI--Wan2.2-I2V-A14B-Diffusers" / "snapshots" / OLD)
    assert find(cache) == ModelFolder(snapshot, TWIN, OLD, "runpod")
    own = put(cache / "Wan2.2-I2V-A14B-Diffusers")
    assert find(cache) == ModelFolder(own, TWIN, None, "cache")


def test_nothing_is_found_in_empty_missing_or_foreign_folders(cache: Path) -> None:
    assert find(cache) is None
    cache.mkdir()
    assert find(cache) is None
    (cache / "Wan2.2-I2V-A14B" / "high_noise_model").mkdir(parents=True)
    put(cache / "Wan2.2-T2V-A14B-Diffusers")
    assert find(cache) is None


def test_an_unfinished_download_is_passed_over(cache: Path) -> None:
    folder = put(cache / HOME / OLD, Record(TWIN, OLD, complete=False))
    assert find(cache) is None
    records.write(folder, Record(TWIN, OLD))
    assert find(cache) == ModelFolder(folder, TWIN, OLD, "cache")


def test_a_pinned_revision_passes_over_others_but_not_the_unknown(cache: Path) -> None:
    home = cache / HOME
    put(home / OLD, Record(TWIN, OLD, requested="v1"))
    newer = put(home / NEW, Record(TWIN, NEW))
    for wanted, found in ((OLD, OLD), ("v1", OLD), (NEW, NEW)):
        folder = find(cache, revision=wanted)
        assert folder is not None
        assert folder.revision == found
    assert find(cache, revision="c" * 40) is None
    (newer / records.RECORD_NAME).unlink()
    plain = put(cache / "Wan2.2-I2V-A14B-Diffusers")
    assert find(cache, revision="c" * 40) == ModelFolder(plain, TWIN, None, "cache")


@pytest.mark.parametrize(
    ("wanted", "order"),
    [("bf16", ["bf16", None, "fp8"]), ("fp8", ["fp8", "bf16", None]), (None, [None])],
)
def test_prepared_weights_are_preferred_in_order(cache: Path, wanted: str | None, order: list[str | None]) -> None:
    home = cache / HOME
    folders = {
        None: put(home / OLD, Record(TWIN, OLD)),
        "bf16": put(home / f"{OLD}-bf16", Record(TWIN, OLD, dtype="bf16")),
        "fp8": put(home / f"{OLD}-fp8", Record(TWIN, OLD, dtype="fp8")),
    }
    for dtype in order:
        source = "cache" if dtype is None else "prepared"
        assert find(cache, prepared=wanted) == ModelFolder(folders[dtype], TWIN, OLD, source, dtype)
        shutil.rmtree(folders[dtype])
    assert find(cache, prepared=wanted) is None


def test_what_was_set_aside_or_is_being_built_is_not_found(cache: Path) -> None:
    home = cache / HOME
    put(home / f"{OLD}-bf16.corrupt", Record(TWIN, OLD, dtype="bf16"))
    put(home / f".{OLD}-bf16.building", Record(TWIN, OLD, dtype="bf16"))
    assert find(cache) is None


def test_a_model_id_may_be_a_folder_and_its_prepared_weights_lie_beside_it(tmp_path: Path, cache: Path) -> None:
    folder = put(tmp_path / "mine")
    assert find(cache, str(folder)) == ModelFolder(folder, str(folder), None, "local")
    own = ModelFolder(folder, str(folder), None, "local")
    assert place(cache).prepared_folder(own, "fp8") == tmp_path / "mine-fp8"
    prepared = put(tmp_path / "mine-bf16", Record(str(folder), dtype="bf16"))
    assert find(cache, str(folder)) == ModelFolder(prepared, str(folder), None, "prepared", "bf16")


def test_a_record_that_cannot_be_read_counts_as_none(cache: Path) -> None:
    folder = put(cache / "Wan2.2-I2V-A14B-Diffusers")
    for garbage in ("{", json.dumps({"repo": 1}), ""):
        (folder / records.RECORD_NAME).write_text(garbage)
        assert find(cache) == ModelFolder(folder, TWIN, None, "cache")


def test_what_was_looked_at_names_folders_and_only_the_log_has_paths(cache: Path) -> None:
    for number in range(12):
        (cache / f"model-{number:02d}").mkdir(parents=True)
    public, private = place(cache).looked_at(I2V)
    assert "MODEL_CACHE_DIR (holds model-00, model-01," in public
    assert "model-09 and 2 more)" in public
    assert "RunPod's cached models (does not exist)" in public
    assert str(cache.parent) not in public
    assert str(cache) in private
    assert f"{cache.parent / 'runpod'} (does not exist; {cache.parent} holds models)" in private
    (cache / "empty").mkdir()
    assert "(holds no model)" in place(cache / "empty").looked_at(I2V)[0]


def test_weights_in_the_image_come_before_those_of_the_volume(cache: Path) -> None:
    put(place(cache).home(TWIN) / f"{OLD}-bf16", Record(TWIN, OLD, dtype="bf16"))
    baked = put(cache.parent / "image" / HOME / f"{NEW}-bf16", Record(TWIN, NEW, dtype="bf16"))
    assert find(cache) == ModelFolder(baked, TWIN, NEW, "image", "bf16")
    assert "the image (holds Wan-AI--" in place(cache).looked_at(I2V)[0]


def test_fp8_in_the_image_serves_only_where_the_volume_has_nothing_better(cache: Path) -> None:
    baked = put(cache.parent / "image" / HOME / f"{NEW}-fp8", Record(TWIN, NEW, dtype="fp8"))
    assert find(cache) == ModelFolder(baked, TWIN, NEW, "image", "fp8")
    original = put(place(cache).home(TWIN) / OLD, Record(TWIN, OLD))
    found = find(cache)
    assert found is not None
    assert found.path == original
