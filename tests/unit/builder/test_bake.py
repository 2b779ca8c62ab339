"""Models in the image: spread over layers, readable by all, the same layer every time."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from builder import bake
from tests.kits.hub_server import GOOD_TOKEN
from tests.kits.weights_kit import I2V, served
from worker.weights.folder import check


def write(folder: Path, sizes: dict[str, int]) -> Path:
    for name, size in sizes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
        path.chmod(0o600)
    return folder


def found(target: Path) -> dict[str, list[str]]:
    """Part -> the files in it."""
    return {
        part.name: sorted(path.relative_to(part).as_posix() for path in part.rglob("*") if path.is_file())
        for part in sorted(target.iterdir())
    }


def parts(target: Path, count: int) -> Path:
    for number in range(count):
        (target / str(number)).mkdir(parents=True)
    return target


def test_files_go_where_they_fit_the_largest_first(tmp_path: Path) -> None:
    source = write(tmp_path / "source", {"m/a": 60, "m/b": 50, "m/c": 40, "m/d": 30})
    target = parts(tmp_path / "target", 2)
    bake.spread(source, target, parts=2, part_bytes=100)
    assert found(target) == {"0": ["m/a", "m/c"], "1": ["m/b", "m/d"]}


@pytest.mark.parametrize("part_bytes", [90, 89])
def test_a_model_that_does_not_fit_moves_nothing(tmp_path: Path, part_bytes: int) -> None:
    source = write(tmp_path / "source", {"m/a": 60, "m/b": 60, "m/c": 30, "m/d": 30})
    target = parts(tmp_path / "target", 2)
    if part_bytes == 90:
        bake.spread(source, target, parts=2, part_bytes=part_bytes)
        assert found(target) == {"0": ["m/a", "m/c"], "1": ["m/b", "m/d"]}
    else:
        with pytest.raises(ValueError, match=r"do not fit into 2 layers"):
            bake.spread(source, target, parts=2, part_bytes=part_bytes)
        assert found(target) == {"0": [], "1": []}


def test_a_file_that_two_models_share_is_stored_once(tmp_path: Path) -> None:
    source = write(tmp_path / "source", {"one/encoder": 80, "two/weights": 70})
    (source / "two" / "encoder").hardlink_to(source / "one" / "encoder")
    target = parts(tmp_path / "target", 2)
    bake.spread(source, target, parts=2, part_bytes=100)
    assert found(target) == {"0": ["one/encoder", "two/encoder"], "1": ["two/weights"]}
    assert (target / "0/one/encoder").samefile(target / "0/two/encoder")


def test_every_user_can_read_and_the_time_says_nothing(tmp_path: Path) -> None:
    source = write(tmp_path / "source", {"m/a": 1, ".locks/m.lock": 0})
    target = parts(tmp_path / "target", 1)
    bake.spread(source, target, parts=1, part_bytes=10)
    assert found(target) == {"0": ["m/a"]}
    for path in (target / "0", target / "0/m", target / "0/m/a"):
        assert path.stat().st_mtime == 0
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644)


def test_without_a_model_there_are_empty_parts(tmp_path: Path) -> None:
    assert bake.main(["--into", str(tmp_path / "baked")]) == 0
    assert found(tmp_path / "baked") == {str(number): [] for number in range(bake.PARTS)}


def test_an_unknown_model_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bake.main(["--models", "i2v,14b", "--into", str(tmp_path / "baked")]) == 1
    assert "no model 14b; write none, or any of i2v t2v 5b" in capsys.readouterr().err


def test_a_gated_model_is_baked_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub on loopback, the real download and conversion; the parts put together are a model that can be loaded."""
    with served(monkeypatch) as hub:
        hub.add(I2V, {path: blob.content for path, blob in hub.repos[I2V].files.items()}, gated=True)
        monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
        monkeypatch.setenv("MODEL_CACHE_DIR", "")
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        assert bake.main(["--models", "i2v", "--into", str(tmp_path / "baked")]) == 0
    image = tmp_path / "models"
    for part in sorted((tmp_path / "baked").iterdir()):
        for path in part.rglob("*"):
            if path.is_file():
                copied = image / path.relative_to(part)
                copied.parent.mkdir(parents=True, exist_ok=True)
                path.rename(copied)
    (folder,) = image.glob("*/*-bf16")
    assert check.verify(folder) == []
    assert [path.name for path in (tmp_path / "baked").iterdir() if not path.name.isdigit()] == []
