"""Captions in their three forms, and all that people's editors do to them."""

from __future__ import annotations

import json
import unicodedata

import pytest

from worker.training.captions import MAX_LINES, MAX_LIST_BYTES, MAX_TEXT_BYTES, Captions, is_caption, read_captions


def captions_of(files: dict[str, bytes | str], *media: str) -> Captions:
    stored = {name: content.encode() if isinstance(content, str) else content for name, content in files.items()}
    sizes = {**{name: len(content) for name, content in stored.items()}, **dict.fromkeys(media, 10)}
    return read_captions(media, sizes, lambda name: stored[name])


def lines(*entries: object) -> str:
    return "\n".join(json.dumps(entry) for entry in entries)


def test_a_text_of_the_same_stem() -> None:
    files: dict[str, bytes | str] = {"a.txt": "a cat", "sub/b.TXT": "a dog", "Clip.txt": "a bird"}
    found = captions_of(files, "a.mp4", "sub/b.png", "clip.MP4")
    assert found == Captions({"a.mp4": "a cat", "sub/b.png": "a dog", "clip.MP4": "a bird"})


@pytest.mark.parametrize("name", ["captions.jsonl", "metadata.jsonl", "Metadata.JSONL"])
@pytest.mark.parametrize(
    ("file", "text"),
    [("file_name", "text"), ("file", "caption"), ("video", "prompt"), ("media_path", "caption"), ("image", "text")],
)
def test_lists_with_the_names_of_others(name: str, file: str, text: str) -> None:
    listed = lines({file: "a.mp4", text: "a cat", "fps": 16}, {file: "./b.png", text: "a dog"})
    assert captions_of({name: listed}, "a.mp4", "b.png") == Captions({"a.mp4": "a cat", "b.png": "a dog"})


def test_paths_in_a_list_begin_at_its_folder_or_at_the_top() -> None:
    listed = lines({"file_name": "a.mp4", "text": "inner"}, {"file_name": "b.mp4", "text": "top"})
    listed += "\n" + lines({"file_name": "videos\\c.mp4", "text": "deep"})
    found = captions_of({"data/metadata.jsonl": listed}, "data/a.mp4", "a.mp4", "b.mp4", "data/videos/c.mp4")
    assert found.texts == {"data/a.mp4": "inner", "b.mp4": "top", "data/videos/c.mp4": "deep"}
    assert found.refused.keys() == {"a.mp4"}


def test_letters_with_accents_are_the_same_composed_or_not() -> None:
    decomposed = unicodedata.normalize("NFD", "café.mp4")
    listed = lines({"file_name": "café.mp4", "text": "a street"})
    assert captions_of({"captions.jsonl": listed}, decomposed) == Captions({decomposed: "a street"})
    assert captions_of({"café.txt": "a street"}, decomposed) == Captions({decomposed: "a street"})


def test_the_text_beside_a_file_goes_before_a_list() -> None:
    files: dict[str, bytes | str] = {
        "a.txt": "of the text",
        "captions.jsonl": lines({"file_name": "a.mp4", "text": "of the list"}, {"file_name": "b.mp4", "text": "first"}),
        "metadata.jsonl": lines({"file_name": "b.mp4", "text": "second"}, {"file_name": "a.mp4", "text": ""}),
    }
    assert captions_of(files, "a.mp4", "b.mp4") == Captions({"a.mp4": "of the text", "b.mp4": "first"})


@pytest.mark.parametrize(
    "encoded",
    [
        b"a caf\xc3\xa9\r\nat night\r\n",
        b"\xef\xbb\xbfa caf\xc3\xa9 at\tnight",
        "a café at night".encode("utf-16"),
        b"\xfe\xff" + "a café at night".encode("utf-16-be"),
        "  a café\n\nat\u00a0night ".encode(),
    ],
)
def test_what_editors_write(encoded: bytes) -> None:
    assert captions_of({"a.txt": encoded}, "a.mp4").texts == {"a.mp4": "a café at night"}


def test_a_list_with_a_mark_crlf_and_blank_lines() -> None:
    listed = "\ufeff" + lines({"file_name": "a.mp4", "text": "a cat"}) + "\r\n\r\n"
    assert captions_of({"captions.jsonl": listed}, "a.mp4") == Captions({"a.mp4": "a cat"})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "has no caption: put it into a.txt beside the file"),
        (b"caf\xe9", "its text is not UTF-8"),
        (b"\xff\xfea", "its text is not UTF-8"),
        (b"", "its caption is empty"),
        (b" \r\n\t", "its caption is empty"),
        (b"a" * 4_001, "its caption has 4,001 characters"),
        (b"a " * (MAX_TEXT_BYTES // 2 + 1), "its text has 64,002 bytes"),
        (b"a\0cat", "what is no text"),
    ],
)
def test_a_caption_that_cannot_be_used(content: bytes | None, reason: str) -> None:
    found = captions_of({} if content is None else {"a.txt": content}, "a.mp4")
    assert found.texts == {}
    assert reason in found.refused["a.mp4"]


def test_a_caption_at_the_bound() -> None:
    assert captions_of({"a.txt": b"a" * 4_000}, "a.mp4").texts["a.mp4"] == "a" * 4_000


@pytest.mark.parametrize(
    ("line", "about", "reason"),
    [
        ("no json", "captions.jsonl line 1", "is no line of JSON"),
        ("[" * 50_000, "captions.jsonl line 1", "is no line of JSON"),
        ("1" * 5_000, "captions.jsonl line 1", "is no line of JSON"),
        ("[1]", "captions.jsonl line 1", "is no JSON object"),
        ('{"text": "a cat"}', "captions.jsonl line 1", "has not both a file and a caption"),
        ('{"file_name": "a.mp4", "text": 5}', "captions.jsonl line 1", "has not both a file and a caption"),
        ('{"file_name": "z.mp4", "text": "a"}', "z.mp4", "is named in line 1 of captions.jsonl, and is no video"),
        ('{"file_name": "a.mp4", "text": " "}', "a.mp4", "its caption is empty"),
        ('{"file_name": "a.mp4", "text": "\\ud800"}', "a.mp4", "what is no text"),
    ],
)
def test_a_line_that_cannot_be_used_leaves_the_others(line: str, about: str, reason: str) -> None:
    listed = line + "\n" + lines({"file_name": "b.mp4", "text": "a dog"})
    found = captions_of({"captions.jsonl": listed}, "a.mp4", "b.mp4")
    assert found.texts == {"b.mp4": "a dog"}
    assert reason in found.refused[about]


@pytest.mark.parametrize(
    ("listed", "reason"),
    [
        ("x" * (MAX_LIST_BYTES + 1), "its text has 4,000,001 bytes"),
        ("x\n" * MAX_LINES, "has more than 8,000 lines"),
        (b"\xff\xff", "is not UTF-8"),
    ],
)
def test_a_list_that_is_not_read(listed: bytes | str, reason: str) -> None:
    found = captions_of({"captions.jsonl": listed, "b.txt": "a dog"}, "a.mp4", "b.mp4")
    assert found.texts == {"b.mp4": "a dog"}
    assert reason in found.refused["captions.jsonl"]
    assert "no caption" in found.refused["a.mp4"]


def test_a_text_that_belongs_to_nothing_is_reported() -> None:
    found = captions_of({"readme.txt": "hello", "a.txt": "a cat"}, "a.mp4")
    assert found.texts == {"a.mp4": "a cat"}
    assert found.refused == {"readme.txt": "belongs to no video or picture: give it the name of one, with .txt"}


def test_what_is_a_caption_by_its_name() -> None:
    assert [name for name in ("a.txt", "b/captions.jsonl", "c.jsonl", "a.mp4", "txt") if is_caption(name)] == [
        "a.txt",
        "b/captions.jsonl",
    ]
