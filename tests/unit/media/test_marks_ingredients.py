"""What goes into a video travels on in its manifest."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from c2pa import Reader

from tests.unit.media.test_marks import KEY, ROOT, encoded
from worker.base.errors import Cancelled
from worker.media.marks import reading
from worker.media.marks.ingredients import MAX_BYTES, Ingredients
from worker.media.marks.marker import Marker
from worker.media.marks.provenance import Origin
from worker.media.marks.signing import offline
from worker.request.values import Output


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A picture of somebody's, signed, whose manifest names them."""
    (tmp_path / "theirs").mkdir()
    video = Marker(key=KEY).mark(encoded(tmp_path / "theirs", Output()), Origin("their-model"))
    assert video.poster is not None
    return video.poster


def claim_of(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest of a file, and all manifests in it by their labels."""
    with Reader(str(path), context=offline()) as reader:
        store = json.loads(reader.json())
    return store["manifests"][store["active_manifest"]], store["manifests"]


def marked(folder: Path, *sources: bytes | Path) -> tuple[dict[str, Any], dict[str, Any], Path]:
    ingredients = Ingredients(wanted=True)
    for source in sources:
        ingredients.add(source)
    video = Marker(key=KEY).mark(encoded(folder, Output()), Origin("wan", True, ingredients.archives))
    assert reading.read(video.path, trust_anchors=ROOT.root).state == "trusted"
    return *claim_of(video.path), video.path


def test_a_pictures_own_manifest_is_kept_as_the_parent(tmp_path: Path, theirs: Path) -> None:
    claim, manifests, path = marked(tmp_path, theirs.read_bytes())
    (parent,) = claim["ingredients"]
    assert parent["relationship"] == "parentOf"
    kept = manifests[parent["active_manifest"]]
    assert "their-model" in json.dumps(kept)
    (actions,) = (each["data"]["actions"] for each in claim["assertions"] if "actions" in each["label"])
    assert [action["action"] for action in actions] == ["c2pa.opened", "c2pa.edited"]
    marks = reading.read(path)
    assert (marks.digital_source_type, marks.ingredients) == ("compositeWithTrainedAlgorithmicMedia", 1)


def test_a_video_is_read_from_its_file_and_a_second_picture_is_placed_beside_the_first(
    tmp_path: Path, theirs: Path
) -> None:
    claim, manifests, _ = marked(tmp_path, theirs.with_suffix(".mp4"), theirs.read_bytes())
    assert [each["relationship"] for each in claim["ingredients"]] == ["parentOf", "componentOf"]
    assert len(manifests) == 3


@pytest.mark.parametrize("source", [b"", b"no picture", b"\xff\xd8\xff damaged", b"\x1aE\xdf\xa3 Matroska"])
def test_a_file_that_holds_no_manifest_is_an_ingredient_without_one(tmp_path: Path, source: bytes) -> None:
    claim, manifests, _ = marked(tmp_path, source)
    (parent,) = claim["ingredients"]
    assert (parent["relationship"], "active_manifest" in parent, len(manifests)) == ("parentOf", False, 1)


def test_no_name_of_the_callers_file_is_kept(tmp_path: Path, theirs: Path) -> None:
    secret = theirs.with_name("anna-at-home.jpg")
    theirs.rename(secret)
    claim, _, path = marked(tmp_path, secret)
    assert claim["ingredients"][0]["title"] == "source_0"
    assert b"anna" not in path.read_bytes()


def test_a_picture_that_is_sent_twice_is_one_ingredient(theirs: Path) -> None:
    ingredients = Ingredients(wanted=True)
    ingredients.add(theirs.read_bytes())
    ingredients.add(theirs)
    assert len(ingredients.archives) == 1


def test_nothing_is_read_where_nothing_is_signed(theirs: Path) -> None:
    ingredients = Ingredients(wanted=False)
    ingredients.add(theirs)
    assert ingredients.archives == ()


def test_a_stop_ends_the_reading(theirs: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        Ingredients(wanted=True, stop=stop).add(theirs)


def test_a_manifest_beyond_the_bound_is_left_out(
    tmp_path: Path, theirs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = Ingredients(wanted=True, max_bytes=1000)
    small.add(theirs)
    assert small.archives == (b"",)
    assert "damaged" in caplog.text
    assert MAX_BYTES > 1000
