"""The doctor on the models' weights: a row for each finding and its advice."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.kits.doctor_kit import H100, WAN, Patch, Row, copied, deployment, i2v
from tests.kits.tiny_repo import tiny_repos
from tests.kits.weights_kit import ENCODER, I2V, SHARD, flip
from worker.doctor import weights
from worker.weights import ModelCache, ModelFolder
from worker.weights.ensure import ensure


def recorded(home: Path, patch: Patch) -> ModelFolder:
    """As after the first start of a worker, which notes sizes and samples."""
    place = copied(home, patch)
    return ensure(ModelCache(place.parent, place / "none"), I2V)


def unfinished(home: Path, patch: Patch) -> None:
    record = recorded(home, patch).path / "videogen.json"
    record.write_text(record.read_text().replace('"complete": true', '"complete": false'))


def damaged(home: Path, patch: Patch) -> None:
    place = recorded(home, patch).path
    os.truncate(place / SHARD, 1000)
    (place / ENCODER).unlink()


def own_damaged(home: Path, patch: Patch) -> None:
    place = copied(home, patch)
    os.truncate(place / SHARD, 1000)
    patch.setenv("I2V_MODEL_ID", str(place))


def changed(home: Path, _: Patch) -> None:
    """The hub client's own layout names the hash of each file, so that it is known without a record."""
    place = home / "models" / ("models--" + I2V.replace("/", "--")) / "snapshots" / "abc"
    shutil.copytree(tiny_repos() / "i2v", place)
    (place / "README.md").unlink()
    content = (place / SHARD).read_bytes()
    blob = home / "models" / hashlib.sha256(content).hexdigest()
    blob.write_bytes(content)
    (place / SHARD).unlink()
    (place / SHARD).symlink_to(blob)
    flip(blob, len(content) // 2)


def large(home: Path, patch: Patch) -> None:
    copied(home, patch)
    patch.setattr(weights, "_PREPARED_LESS_THAN_BYTES", 1000)


def offline(_: Path, patch: Patch) -> None:
    patch.setattr(constants, "HF_HUB_OFFLINE", True)


# fmt: off
ROWS: dict[str, Row] = {
    "weights whole": Row(i2v(weights.check), "OK", "{home}/models/Wan-AI--Wan2.2-I2V-A14B-Diffusers; sizes and samples "
        "are right (every byte: python -m worker.doctor --verify-weights)", env=WAN, gpu=H100, before=recorded),
    "weights verified": Row(i2v(weights.verify), "OK", "every byte", env=WAN, gpu=H100, before=recorded),
    **{f"weights missing, PRELOAD={preload}": Row(i2v(weights.check), "WARN",
        f"{I2V} is not there: about 126 GB are downloaded {when}; without HF_TOKEN",
        "python -m builder.prepare --model i2v --dtype bf16", env={**WAN, "PRELOAD": preload}, gpu=H100) for preload,
        when in (("i2v", "as the worker starts"), ("none", "during the first job that asks for it"))},
    **{f"weights offline, PRELOAD={preload}": Row(i2v(weights.check_presence), "FAIL", "HF_HUB_OFFLINE forbids",
        "unset HF_HUB_OFFLINE", stops=preload == "i2v", env={**WAN, "PRELOAD": preload}, gpu=H100, before=offline)
        for preload in ("i2v", "none")},
    "weights no model": Row(i2v(weights.check), "FAIL", "is not a folder in Diffusers' format",
        "correct I2V_MODEL_ID", stops=True, env={**WAN, "I2V_MODEL_ID": "{home}/nothing"}, gpu=H100),
    "weights unfinished": Row(i2v(weights.check), "WARN", "a download of", "it goes on when a worker", env=WAN,
        gpu=H100, before=unfinished),
    # A worker fixes it: it stops no job.
    "weights truncated": Row(i2v(weights.check), "FAIL", SHARD, "a worker with access to the hub", env=WAN, gpu=H100,
        before=damaged),
    "weights incomplete": Row(i2v(weights.check), "FAIL", f"{ENCODER}: it is missing", "a worker", env=WAN, gpu=H100,
        before=damaged),
    "weights changed between samples": Row(i2v(weights.check), "OK", "samples", env=WAN, gpu=H100, before=changed),
    "weights changed, every byte": Row(i2v(weights.verify), "FAIL", f"{SHARD}: the content is not what the hub has",
        "a worker", env=WAN, gpu=H100, before=changed),
    "weights of the operator": Row(i2v(weights.check), "FAIL", SHARD, "put these files there again", env=WAN,
        gpu=H100, before=own_damaged),
    "weights as published": Row(i2v(weights.check), "WARN", "as published", "--dtype bf16 --replace", env=WAN,
        gpu=H100, before=large),
    **{f"weights demo, {check.__name__}": Row(i2v(check), "OK", "not needed") for check in (weights.check,
        weights.check_presence, weights.verify)},
}
# fmt: on


@pytest.mark.parametrize("name", ROWS)
def test_a_check_finds_and_advises(name: str, tmp_path: Path, monkeypatch: Patch) -> None:
    ROWS[name].holds(tmp_path, monkeypatch)


def test_with_a_token_the_rate_of_the_download_is_no_matter(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("MODEL_PROFILE", "wan2.2")
    monkeypatch.setenv("HF_TOKEN", "hf_1234567890")
    assert "HF_TOKEN" not in weights.check(deployment(tmp_path, H100), "i2v").found
