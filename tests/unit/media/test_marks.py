"""Every file that leaves is marked, with and without a key, and shows what it showed before."""

from __future__ import annotations

import hashlib
import json
import re
import xml.etree.ElementTree as ET
import zipfile
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.kits import c2pa_kit
from tests.kits.c2pa_kit import Authority
from worker.base.errors import EncodeFailed
from worker.media import FORMATS, VideoFile
from worker.media.encode import encode
from worker.media.marks import metadata, reading
from worker.media.marks.marker import Marker
from worker.media.marks.provenance import Origin
from worker.media.marks.signing import SigningKey
from worker.request.settle import CODECS
from worker.request.values import Output

ROOT = Authority()
SIGNER = ROOT.issue()
KEY = SigningKey.load(SIGNER.chain, SIGNER.key)
ORIGIN = Origin(model="wan2.2-t2v-a14b")
OUTPUTS = [Output(format=name, codec=codec) for name, codecs in CODECS.items() for codec in codecs]
XMP = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"


def encoded(folder: Path, output: Output, *, side: int = 64, count: int = 9) -> VideoFile:
    random = np.random.default_rng(3)
    return encode(
        (random.integers(0, 255, (side, side, 3), np.uint8) for _ in range(count)),
        path=folder / f"0{FORMATS[output.format].suffix}",
        width=side,
        height=side,
        num_frames=count,
        fps=16,
        poster=folder / "0.jpg",
        frames_zip=folder / "0.zip",
        output=output,
    )


def shown(path: Path) -> tuple[list[bytes], list[object]]:
    """What a player shows of a file, and when."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return [np.asarray(Image.open(archive.open(name))).tobytes() for name in archive.namelist()], []
    if path.suffix in (".mp4", ".webm"):
        with av.open(str(path)) as container:
            frames = list(container.decode(video=0))
            return [frame.to_ndarray().tobytes() for frame in frames], [frame.time for frame in frames]
    with Image.open(path) as image:
        count, times = getattr(image, "n_frames", 1), []
        pixels = []
        for number in range(count):
            image.seek(number)
            pixels.append(np.asarray(image.convert("RGBA")).tobytes())
            times.append(image.info.get("duration"))
        return pixels, times


def files_of(video: VideoFile) -> list[Path]:
    return [path for path in (video.path, video.poster, video.frames) if path is not None]


@pytest.mark.parametrize("signed", [False, True], ids=["metadata", "signed"])
@pytest.mark.parametrize("output", OUTPUTS, ids=lambda output: f"{output.format}-{output.codec}")
def test_each_file_of_each_format_is_marked_and_shows_the_same(tmp_path: Path, output: Output, signed: bool) -> None:
    video = encoded(tmp_path, output)
    before = [shown(path) for path in files_of(video)]
    marked = Marker(key=KEY if signed else None).mark(video, ORIGIN)
    assert [shown(path) for path in files_of(marked)] == before
    assert sorted(tmp_path.iterdir()) == sorted(files_of(video)), "nothing half-written is left"
    for path in files_of(marked):
        marks = reading.read(path, trust_anchors=ROOT.root)
        assert marks.state == ("trusted" if signed and path.suffix not in (".webm", ".zip") else "tagged")
        assert marks.digital_source_type == "trainedAlgorithmicMedia"
    content = marked.path.read_bytes()
    assert (marked.size_bytes, marked.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert marked.size_bytes - video.size_bytes < Marker(key=KEY if signed else None).most_bytes()
    assert marked.provenance is not None
    assert marked.provenance.as_dict() == {
        "digital_source_type": "trainedAlgorithmicMedia",
        "c2pa": "signed" if signed and output.format != "webm" else "off",
        "timestamped": False,
        "instance_id": ORIGIN.of_file(video.sha256).instance_id,
    }


def test_every_format_has_a_way_to_be_marked(tmp_path: Path) -> None:
    """A new format fails here until `metadata.embed` knows it."""
    (tmp_path / "file").write_bytes(b"")
    for content_type in {each.content_type for each in FORMATS.values()}:
        try:
            metadata.embed(tmp_path / "file", tmp_path / "out", content_type, ORIGIN, None)
        except KeyError:
            pytest.fail(f"{content_type} cannot be marked")
        except (EncodeFailed, ValueError, IndexError, OSError):  # an empty file is none of that format
            continue


def test_the_index_of_an_mp4_stays_at_its_front(tmp_path: Path) -> None:
    marked = Marker(key=KEY).mark(encoded(tmp_path, Output()), ORIGIN)
    content, boxes, start = marked.path.read_bytes(), [], 0
    while start < len(content):
        boxes.append(content[start + 4 : start + 8])
        start += int.from_bytes(content[start : start + 4], "big")
    assert boxes.index(b"moov") < boxes.index(b"mdat")


@pytest.mark.parametrize(
    ("size", "saved"),
    [((64, 48), {"lossless": True}), ((63, 47), {"quality": 60}), ((64, 48), {"save_all": True, "duration": 50})],
    ids=["VP8L", "VP8", "VP8X"],
)
def test_a_webp_of_each_kind_takes_xmp(tmp_path: Path, size: tuple[int, int], saved: dict[str, object]) -> None:
    pictures = [Image.effect_noise(size, sigma).convert("RGB") for sigma in (30, 60)]
    more = {"append_images": pictures[1:]} if "save_all" in saved else {}
    pictures[0].save(tmp_path / "0.webp", **saved, **more)
    before = shown(tmp_path / "0.webp")
    Marker(key=KEY).mark_file(tmp_path / "0.webp", "image/webp", ORIGIN)
    assert shown(tmp_path / "0.webp") == before
    with Image.open(tmp_path / "0.webp") as image:
        assert ET.fromstring(image.info["xmp"]).find(f".//{XMP}") is not None


def test_pictures_hold_iptcs_term_where_their_readers_look_for_it(tmp_path: Path) -> None:
    video = Marker().mark(encoded(tmp_path, Output(format="gif", codec="gif")), ORIGIN)
    assert video.poster is not None
    assert video.frames is not None
    packets = []
    with (
        zipfile.ZipFile(video.frames) as archive,
        archive.open(archive.namelist()[0]) as file,
        Image.open(file) as frame,
    ):
        frame.load()
        packets.append(frame.info["XML:com.adobe.xmp"].encode())
    with Image.open(video.poster) as poster:
        packets.append(poster.info["xmp"])
    packets.append(re.search(rb"XMP DataXMP(<\?xpacket.*?<\?xpacket end=\"w\"\?>)", video.path.read_bytes())[1])
    for packet in packets:
        term = ET.fromstring(packet).find(f".//{XMP}")
        assert term is not None
        assert term.text == ORIGIN.uri


@pytest.mark.parametrize("name", ["mp4", "webm"])
def test_containers_hold_tags_and_chinas_label_where_a_producer_is_named(tmp_path: Path, name: str) -> None:
    producer = 'A "maker" & <co>, 制作者'
    video = encoded(tmp_path, Output(format=name, codec=CODECS[name][0]))
    Marker(producer=producer).mark(video, ORIGIN)
    with av.open(str(video.path)) as container:
        tags = {key.lower(): value for key, value in container.metadata.items()}
    assert tags["digitalsourcetype"] == ORIGIN.uri
    assert json.loads(tags["aigc"])["ContentProducer"] == producer
    for path in files_of(video):
        label = reading.read(path).aigc
        assert label is not None
        assert label["Label"] == "1"
        assert label["ContentProducer"] == (producer if path == video.path else label["ContentProducer"])


def test_no_label_without_a_producer(tmp_path: Path) -> None:
    video = Marker().mark(encoded(tmp_path, Output()), ORIGIN)
    assert all(reading.read(path).aigc is None for path in files_of(video))


def test_marks_that_are_off_leave_every_byte(tmp_path: Path) -> None:
    video = encoded(tmp_path, Output())
    before = [path.read_bytes() for path in files_of(video)]
    marker = Marker(is_on=False, key=KEY)
    assert marker.mark(video, ORIGIN) == video
    assert [path.read_bytes() for path in files_of(video)] == before
    assert marker.most_bytes() == 0


def test_a_time_stamp_says_when_a_file_was_signed(tmp_path: Path) -> None:
    video = encoded(tmp_path, Output())
    unmarked = video.size_bytes
    with ROOT.time_stamps() as url:
        video = Marker(key=KEY, tsa_url=url).mark(video, ORIGIN)
    assert video.provenance is not None
    assert video.provenance.timestamped
    assert video.size_bytes - unmarked < Marker(key=KEY, tsa_url=url).most_bytes()
    for path in files_of(video)[:2]:
        marks = reading.read(path, trust_anchors=ROOT.root)
        assert (marks.state, marks.signed_at is not None) == ("trusted", True)


def test_a_silent_time_stamp_authority_costs_its_limit_once_and_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with c2pa_kit.silent() as url:
        video = Marker(key=KEY, tsa_url=url, tsa_limit_s=0.3).mark(encoded(tmp_path, Output()), ORIGIN)
    assert video.provenance is not None
    assert (video.provenance.signed, video.provenance.timestamped) == (True, False)
    assert "C2PA_TSA_URL" in video.provenance.notes[0]
    assert [record.message for record in caplog.records] == ["no time stamp: it did not answer within 0.3 s"]
    assert all(reading.read(path, trust_anchors=ROOT.root).state == "trusted" for path in files_of(video)[:2])


def test_a_key_that_cannot_sign_any_more_leaves_metadata_and_a_warning(tmp_path: Path) -> None:
    expired = replace(KEY, chain=ROOT.issue(days=-1).chain.encode())
    video = Marker(key=expired).mark(encoded(tmp_path, Output()), ORIGIN)
    assert video.provenance is not None
    assert video.provenance.as_dict()["c2pa"] == "off"
    assert "not signed" in video.provenance.notes[0]
    assert {reading.read(path).state for path in files_of(video)} == {"tagged"}


def test_a_file_that_cannot_be_marked_fails_the_video_and_stays_as_it_was(tmp_path: Path) -> None:
    broken = tmp_path / "0.mp4"
    broken.write_bytes(b"not a video")
    with pytest.raises(EncodeFailed, match="could not be marked"):
        Marker().mark_file(broken, "video/mp4", ORIGIN)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"not a video"]


def test_nothing_of_the_request_is_in_the_marks() -> None:
    """The claim is made of these values alone; none is the caller's."""
    assert set(Origin.__dataclass_fields__) == {"model", "composite", "ingredients", "instance_id"}
