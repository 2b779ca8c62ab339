"""The data set of a training, from real videos and pictures to frames on the disk."""

from __future__ import annotations

import json
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.kits.slow import slow
from tests.kits.training_kit import movie, picture, small_set, training_request, zipped
from worker.base.errors import Cancelled, InputInvalid
from worker.training import dataset
from worker.training.dataset import Clip, Dataset, read_dataset


def dataset_of(files: dict[str, bytes | str], folder: Path, **fields: Any) -> Dataset:
    file, into = folder / "set.zip", folder / "clips"
    file.write_bytes(zipped(files))
    into.mkdir(exist_ok=True)
    return read_dataset(file, into, training_request(**fields), stop=threading.Event())


def frames_of(clip: Clip) -> NDArray[np.uint8]:
    frames: NDArray[np.uint8] = np.load(clip.frames, mmap_mode="r")
    assert frames.dtype == np.uint8
    assert len(frames) == clip.num_frames
    return frames


def reasons(found: Dataset) -> dict[str, str]:
    return {each.name: each.reason for each in found.refused}


def test_videos_and_pictures_become_frames_of_one_size(tmp_path: Path) -> None:
    found = dataset_of(
        {
            "b/long.mp4": movie(),
            "b/long.txt": "a long video",
            "a.webm": movie("96x48", 0.6, 30, ".webm"),
            "c.png": picture(),
            "metadata.jsonl": '{"file_name": "a.webm", "text": "a wide video"}\n{"file_name": "c.png", "text": "red"}',
        },
        tmp_path,
    )
    assert [(clip.name, clip.caption) for clip in found.clips] == [
        ("a.webm", "a wide video"),
        ("b/long.mp4", "a long video"),
        ("c.png", "red"),
    ]
    assert [frames_of(clip).shape for clip in found.clips] == [(9, 48, 64, 3), (9, 48, 64, 3), (1, 48, 64, 3)]
    assert (frames_of(found.clips[2]) == (200, 40, 40)).all()
    assert found.held_out == found.refused == ()
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == ["00000.npy", "00001.npy", "00002.npy"]


@pytest.mark.parametrize("rate", [16, 32, 48])
def test_frames_are_those_of_the_video_at_the_models_rate(rate: int, tmp_path: Path) -> None:
    """Each within half a frame of its time, and a step of rounding."""
    (clip,) = dataset_of({"a.mp4": movie(rate=rate), "a.txt": "a"}, tmp_path).clips
    levels = frames_of(clip).mean(axis=(1, 2, 3))
    off_s = levels / 255 * 219 / 100 - 0.1 - np.arange(9) / 16
    assert np.abs(off_s).max() < 0.5 / 16 + 0.015


@pytest.mark.parametrize(("seconds", "num_frames", "used"), [(0.5, 81, 5), (0.75, 81, 9), (1.0, 5, 5), (0.5, 1, 1)])
def test_a_video_is_cut_to_what_the_model_makes(seconds: float, num_frames: int, used: int, tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {"a.mp4": movie(seconds=seconds), "a.txt": "a"}
    (clip,) = dataset_of(files, tmp_path, num_frames=num_frames).clips
    assert len(frames_of(clip)) == used


def test_a_video_that_is_too_short_is_refused(tmp_path: Path) -> None:
    found = dataset_of(small_set(**{"b.mp4": movie(seconds=0.25), "b.txt": "b"}), tmp_path)
    assert reasons(found) == {"b.mp4": "has 4 frames at 16 fps: send a video of at least 5"}


def test_another_size_is_cropped_or_refused(tmp_path: Path) -> None:
    files = small_set(**{"b.png": picture(size=(128, 48)), "b.txt": "b", "c.mp4": movie("96x48"), "c.txt": "c"})
    scaled = dataset_of(files, tmp_path)
    assert [round(clip.cropped, 2) for clip in scaled.clips] == [0, 0.5, 0.33]
    strict = dataset_of(files, tmp_path, auto_scale_input=False)
    assert [clip.name for clip in strict.clips] == ["a.png"]
    assert reasons(strict) == {
        "b.png": "is 128x48, not 64x48: send it at that size, or auto_scale_input true",
        "c.mp4": "is 96x48, not 64x48: send it at that size, or auto_scale_input true",
    }


def test_the_trigger_phrase_is_before_each_caption_once(tmp_path: Path) -> None:
    files = small_set(**{"b.png": picture((0, 0, 0)), "b.txt": "ZXQ by night"})
    found = dataset_of(files, tmp_path, trigger_phrase="zxq")
    assert [clip.caption for clip in found.clips] == ["zxq, a red field", "ZXQ by night"]


def test_what_cannot_be_used_is_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "IMAGE_LIMITS", replace(dataset.IMAGE_LIMITS, max_bytes=2_000))
    files = small_set(
        **{
            "b.png": b"no picture",
            "b.txt": "b",
            "c.mp4": picture((0, 0, 0)),
            "c.txt": "c",
            "d.png": picture(),
            "d.txt": "d",
            "e.png": picture((0, 0, 9)),
            "f.bmp": b"BM" + bytes(2_000),
            "f.txt": "f",
            "notes.pdf": b"%PDF",
            "alone.txt": "nothing",
        }
    )
    found = dataset_of(files, tmp_path)
    assert [clip.name for clip in found.clips] == ["a.png"]
    starts = {
        "alone.txt": "belongs to no video or picture",
        "b.png": "not an image that can be read",
        "c.mp4": "not a video in a supported format",
        "d.png": "has the same bytes as a.png",
        "e.png": "has no caption",
        "f.bmp": "has 0 MB: send at most 0 MB",
        "notes.pdf": "is no video, picture or caption by its name",
    }
    assert reasons(found).keys() == starts.keys()
    assert [name for name, start in starts.items() if not reasons(found)[name].startswith(start)] == []
    report = found.report()
    assert report["used_files"] == [{"name": "a.png", "num_frames": 1, "cropped": 0.0, "held_out": False}]
    assert (report["clips"], report["held_out"], report["refused"]) == (1, 0, 7)
    assert [each["name"] for each in report["refused_files"]] == sorted(starts)
    json.dumps(report)


def test_nothing_usable_is_an_error_with_the_first_reasons(tmp_path: Path) -> None:
    with pytest.raises(InputInvalid) as caught:
        dataset_of({"a.png": picture(), "b.png": b"", "c.png": b"", "d.png": b""}, tmp_path)
    assert caught.value.path == "train.training_data_url"
    assert caught.value.message == (
        "nothing of the set can be used. a.png: has no caption: put it into a.txt beside the file; "
        "b.png: has no caption: put it into b.txt beside the file; c.png: has no caption: put it into c.txt beside the "
        "file"
    )


def pictures(count: int) -> dict[str, bytes | str]:
    made: dict[str, bytes | str] = {f"{number:03}.png": picture((number, 0, 0)) for number in range(count)}
    return {**made, "captions.jsonl": "\n".join(json.dumps({"file": name, "caption": "red"}) for name in made)}


def test_some_are_held_out_by_the_seed(tmp_path: Path) -> None:
    found, again, other = (
        dataset_of(pictures(5), tmp_path, validation_split=0.4, seed=seed).held_out for seed in (1, 1, 2)
    )
    assert len(found) == 2
    assert found == again
    assert found != other


@pytest.mark.parametrize(("count", "split", "held_out"), [(4, 0.5, 2), *slow((3, 0.5, 0), (4, 0.01, 1))])
def test_how_many_are_held_out(count: int, split: float, held_out: int, tmp_path: Path) -> None:
    found = dataset_of(pictures(count), tmp_path, validation_split=split)
    assert (len(found.clips), len(found.held_out)) == (count - held_out, held_out)
    names = [clip.name for clip in (*found.clips, *found.held_out)]
    assert sorted(names) == [f"{number:03}.png" for number in range(count)]
    for part in (found.clips, found.held_out):
        assert list(part) == sorted(part, key=lambda clip: clip.name)
    assert [each["held_out"] for each in found.report()["used_files"]].count(True) == held_out


def test_a_folder_is_read_alike(tmp_path: Path) -> None:
    folder, into = tmp_path / "data", tmp_path / "clips"
    for path in (folder, into):
        path.mkdir()
    for name, content in small_set().items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    found = read_dataset(folder, into, training_request(), stop=threading.Event())
    assert [(clip.name, clip.caption) for clip in found.clips] == [("a.png", "a red field")]
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "a.txt"]


def test_a_stop_ends_it(tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(zipped(small_set()))
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled, match="while its training data was read"):
        read_dataset(tmp_path / "set.zip", tmp_path, training_request(), stop=stop)


def test_a_set_that_would_fill_the_disk_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "SPARE_DISK_BYTES", 10**18)
    with pytest.raises(InputInvalid, match=r"1 files may take .+ send fewer files"):
        dataset_of(small_set(), tmp_path)


def test_memory_does_not_grow_with_the_number_of_clips(tmp_path: Path) -> None:
    """Of files of a megabyte each."""
    peaks = []
    for count in (1, 4):
        tracemalloc.start()
        dataset_of(pictures(count), tmp_path, width=640, height=480)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
