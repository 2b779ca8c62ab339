"""What marks say, and that a change of any byte of the media is seen."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.kits.c2pa_kit import Authority
from tests.kits.slow import slow
from tests.unit.media.test_marks import KEY, ORIGIN, ROOT, encoded, files_of
from worker.media import FORMATS
from worker.media.marks import reading
from worker.media.marks.marker import Marker
from worker.request.values import Output

PLACES = 40


@pytest.mark.parametrize("name", ["mp4", *slow("gif", "webp")])
def test_one_changed_byte_anywhere_in_the_media_is_seen(tmp_path: Path, name: str) -> None:
    video = encoded(tmp_path, Output(format=name, codec="h264" if name == "mp4" else name))
    for path in files_of(Marker(key=KEY).mark(video, ORIGIN))[:2]:
        signed = path.read_bytes()
        # All but the manifest, and in an MP4 the kind of file before it.
        manifest = _manifest(signed)
        skipped = range(32) if name == "mp4" and path == video.path else range(0)
        media = [at for at in range(len(signed)) if at not in manifest and at not in skipped]
        changed = path.with_name(f"changed{path.suffix}")
        for at in {*media[:: len(media) // PLACES], media[0], media[-1]}:
            content = bytearray(signed)
            content[at] ^= 0x10
            changed.write_bytes(content)
            assert reading.read(changed).state == "changed", f"byte {at} of {path.name}"


def _manifest(signed: bytes) -> range:
    """Where the manifest lies: its padding is not of the media. A GIF parts it with a byte after each 255."""
    start = signed.index(b"jumb") - 4
    return range(start, start + int.from_bytes(signed[start : start + 4], "big") * 256 // 255 + 1)


def test_a_signature_by_somebody_else_is_not_trusted(tmp_path: Path) -> None:
    video = Marker(key=KEY).mark(encoded(tmp_path, Output()), ORIGIN)
    ours, theirs = reading.read(video.path), reading.read(video.path, trust_anchors=Authority().root)
    assert (ours.state, ours.problems) == ("signed", ())
    assert (theirs.state, theirs.problems) == ("signed", ("signingCredential.untrusted",))
    assert reading.read(video.path, trust_anchors=ROOT.root).state == "trusted"


def test_everything_that_the_claim_says_is_read(tmp_path: Path) -> None:
    unmarked = encoded(tmp_path, Output())
    instance_id = ORIGIN.of_file(unmarked.sha256).instance_id
    video = Marker(key=KEY, producer="ACME").mark(unmarked, ORIGIN)
    marks = reading.read(video.path)
    assert (marks.signer, marks.issuer, marks.signed_at) == ("Test Signer", "Videos Ltd", None)
    assert (marks.model, marks.instance_id, marks.ingredients) == (ORIGIN.model, instance_id, 0)
    assert marks.software is not None
    assert marks.software.startswith("VideoGen-RunPod ")
    assert marks.aigc is not None
    assert marks.aigc["ProduceID"] in instance_id


@pytest.mark.parametrize("name", [*FORMATS, "txt"])
def test_a_file_without_marks_is_said_to_have_none(tmp_path: Path, name: str) -> None:
    if name == "txt":
        path = tmp_path / "notes.txt"
        path.write_text("made by hand")
    else:
        path = encoded(tmp_path, Output(format=name, codec={"mp4": "h264", "webm": "vp9"}.get(name, name))).path
    assert reading.read(path) == reading.Marks("unmarked")


def test_the_ending_of_a_name_does_not_matter(tmp_path: Path) -> None:
    video = Marker(key=KEY).mark(encoded(tmp_path, Output()), ORIGIN)
    shutil.copy(video.path, tmp_path / "download")
    assert reading.read(tmp_path / "download").state == "signed"
