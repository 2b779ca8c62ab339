"""Whole jobs on the demo model: every file that is stored is marked, with and without a key, and shows the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.flow.conftest import Runner, local_path, small
from tests.kits.c2pa_kit import Authority
from tests.kits.slow import slow
from tests.unit.media.test_marks import shown
from worker.delivery.storage.base import FRAMES_SUFFIX, POSTER_SUFFIX, PREVIEW_SUFFIX
from worker.media import FORMATS
from worker.media.marks import reading

ROOT = Authority()
SIGNER = ROOT.issue()
KEY = {"C2PA_CERT_CHAIN": SIGNER.chain, "C2PA_PRIVATE_KEY": SIGNER.key}
SECRET = "Zanzibar-4711"
BESIDE = (POSTER_SUFFIX, FRAMES_SUFFIX, PREVIEW_SUFFIX)
Make = Callable[[dict[str, str]], Runner]


def made(runner: Runner, **fields: Any) -> dict[str, Any]:
    answer = runner({"job_id": SECRET, "job_request_params": [small(prompt=f"a cat in {SECRET}", **fields)]})
    assert answer["status"] == "completed", answer
    (video,) = answer["videos"]
    return dict(video)


def stored(folder: Path) -> list[Path]:
    """Every file that a job leaves, whatever made it."""
    return sorted(path for path in (folder / "outputs").rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["mp4", *slow(*(name for name in FORMATS if name != "mp4"))])
def test_every_file_that_leaves_is_marked(make_runner: Make, tmp_path: Path, name: str) -> None:
    runner = make_runner({**KEY, "OUTPUT_DIR": str(tmp_path / "outputs")})
    result = made(runner, output_format=name, frames_zip=True, preview="strip")
    files = stored(tmp_path)
    assert {path.name for path in files} == {f"0{suffix}" for suffix in (FORMATS[name].suffix, *BESIDE)}
    for path in files:
        signed = path.suffix not in (".webm", ".zip")
        assert reading.read(path, trust_anchors=ROOT.root).state == ("trusted" if signed else "tagged"), path.name
        assert SECRET.encode() not in path.read_bytes()
    content = local_path(result["video_url"]).read_bytes()
    assert (result["size_bytes"], result["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert result["provenance"]["c2pa"] == ("off" if name == "webm" else "signed")
    assert result["warnings"] == []


def test_marks_change_no_frame(make_runner: Make, tmp_path: Path) -> None:
    seen = []
    for number, environment in enumerate(({}, KEY, {"AI_MARK": "false"})):
        folder = tmp_path / str(number)
        places = {"OUTPUT_DIR": str(folder), "STATE_DIR": str(folder / "state")}
        runner = make_runner({"C2PA_CERT_CHAIN": "", "C2PA_PRIVATE_KEY": "", **environment, **places})
        result = made(runner)
        seen.append([shown(local_path(result[field])) for field in ("video_url", "thumbnail_url")])
        origin = None if result["provenance"] is None else result["provenance"]["c2pa"]
        assert origin == ("off", "signed", None)[number]
    assert reading.read(local_path(result["video_url"])).state == "unmarked"
    assert seen[0] == seen[1] == seen[2]


def test_a_preview_alone_is_marked_and_its_result_says_how(make_runner: Make, tmp_path: Path) -> None:
    result = made(make_runner({**KEY, "OUTPUT_DIR": str(tmp_path / "outputs")}), preview="strip", preview_only=True)
    marks = reading.read(local_path(result["preview_url"]), trust_anchors=ROOT.root)
    assert (marks.state, marks.model) == ("trusted", result["model_version"])
    assert result["provenance"]["instance_id"] == marks.instance_id


def test_a_picture_of_the_callers_makes_a_composite(make_runner: Make, tmp_path: Path, picture_url: str) -> None:
    result = made(make_runner({**KEY, "OUTPUT_DIR": str(tmp_path / "outputs")}), reference_image_url=picture_url)
    assert result["provenance"]["digital_source_type"] == "compositeWithTrainedAlgorithmicMedia"
    marks = reading.read(local_path(result["video_url"]), trust_anchors=ROOT.root)
    assert (marks.state, marks.digital_source_type) == ("trusted", "compositeWithTrainedAlgorithmicMedia")
    assert (marks.ingredients, marks.instance_id) == (1, result["provenance"]["instance_id"])
