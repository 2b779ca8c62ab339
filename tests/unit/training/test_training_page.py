"""The examples of docs/training.md are what the worker takes and returns."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from worker.delivery.shapes import training_schema
from worker.request.training import parse_training
from worker.training import archive, dataset
from worker.training.captions import read_captions

PAGE = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```json {kind}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("text", blocks("training"))
def test_payloads_are_read_without_a_warning(text: str) -> None:
    assert parse_training(json.loads(text), default_job_id="rp-1").train.warnings == ()


def test_captions_are_read() -> None:
    (lines,) = blocks("captions")
    media = ["close/02.mov", "03.png"]
    sizes = {"metadata.jsonl": len(lines), **dict.fromkeys(media, 1)}
    found = read_captions(media, sizes, lambda name: lines.encode())
    assert found.texts.keys() == set(media)
    assert found.refused == {}


def test_reports_have_the_shape_of_the_answer() -> None:
    (text,) = blocks("dataset")
    schema = training_schema()
    report = {**schema["$defs"]["DatasetReport"], "$defs": schema["$defs"]}
    Draft202012Validator(report).validate(json.loads(text))


def test_figures_are_those_of_the_code() -> None:
    shown = [
        f"{archive.MAX_FILES:,}; paths of at most {archive.MAX_NAME_CHARACTERS} characters and {archive.MAX_DEPTH}",
        f"{archive.MAX_UNPACKED_BYTES / 1e9:.0f} GB unpacked",
        f"at most {archive.MAX_RATIO} times its packed size",
        f"fewer than {dataset.MIN_TO_HOLD_OUT} files nothing",
        *(f"`{suffix}`" for suffix in dataset.VIDEOS | dataset.PICTURES - {".jpeg", ".heif", ".tif"}),
    ]
    assert [figure for figure in shown if figure not in PAGE] == []
