"""The captions of a data set: `STEM.txt` beside a file, or lines of `captions.jsonl` or `metadata.jsonl`.

A line is an object with the file's name and its caption under any of the names that other trainers and Hugging Face's
image and video folders use. A caption is one line of words: white space of any kind is a space.
"""

from __future__ import annotations

import codecs
import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from worker.request.texts import MAX_PROMPT_CHARACTERS

LISTS = ("captions.jsonl", "metadata.jsonl")
MAX_TEXT_BYTES = 64_000
MAX_LIST_BYTES = 4_000_000
MAX_LINES = 8_000
_FILE = ("file_name", "file", "filename", "path", "media_path", "video", "video_path", "image", "image_path")
_CAPTION = ("text", "caption", "prompt")
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


@dataclass(frozen=True, slots=True)
class Captions:
    """`texts` by the path of the file that they describe; `refused`: why a file or a line of one is not used."""

    texts: Mapping[str, str]
    refused: Mapping[str, str] = field(default_factory=dict)


class _Unusable(Exception):
    """The argument says why, and what to do about it."""


def is_caption(name: str) -> bool:
    """Whether a file is a list of captions or one caption, by its name."""
    path = PurePosixPath(name)
    return path.suffix.lower() == ".txt" or path.name.lower() in LISTS


def read_captions(media: Iterable[str], sizes: Mapping[str, int], read: Callable[[str], bytes]) -> Captions:
    """The captions of the files `media`, among the files `sizes` (bytes by path); `read` returns the bytes of one.

    A `.txt` goes before a line of a list, and the first line for a file before others. A file without a caption is in
    `refused`, as is each text that belongs to no file.
    """
    texts: dict[str, str] = {}
    refused: dict[str, str] = {}
    wanted = list(media)
    spelled = {_composed(name): name for name in wanted}
    unread = set(filter(is_caption, sizes))
    for name in sorted(unread):
        if PurePosixPath(name).name.lower() in LISTS:
            unread.discard(name)
            _read_list(name, sizes[name], read, spelled, texts, refused)
    beside = {_stem(name): name for name in sorted(unread)}
    for name in wanted:
        own = beside.get(_stem(name))
        try:
            if own is not None:
                unread.discard(own)
                texts[name] = _caption(_text(read, own, sizes[own], MAX_TEXT_BYTES))
                refused.pop(name, None)
            elif name not in texts and name not in refused:
                raise _Unusable(f"has no caption: put it into {PurePosixPath(name).stem}.txt beside the file")
        except _Unusable as why:
            texts.pop(name, None)
            refused[name] = str(why)
    refused.update(dict.fromkeys(unread, "belongs to no video or picture: give it the name of one, with .txt"))
    return Captions(texts, refused)


def _stem(name: str) -> str:
    """What a file and its caption have in common."""
    return _composed(str(PurePosixPath(name).with_suffix(""))).casefold()


def _composed(name: str) -> str:
    """Macs take an accented letter apart in names of files."""
    return unicodedata.normalize("NFC", name)


def _read_list(
    name: str,
    size_bytes: int,
    read: Callable[[str], bytes],
    spelled: Mapping[str, str],
    texts: dict[str, str],
    refused: dict[str, str],
) -> None:
    """Add the captions of a list to `texts`, and what is wrong with its lines to `refused`."""
    try:
        lines = _text(read, name, size_bytes, MAX_LIST_BYTES).split("\n", MAX_LINES)
        if len(lines) > MAX_LINES:
            raise _Unusable(f"has more than {MAX_LINES:,} lines: write one for each file")
    except _Unusable as why:
        refused[name] = str(why)
        return
    folder = PurePosixPath(name).parent
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        about = f"{name} line {number}"
        try:
            file, caption = _entry(line)
            places = (_composed(str(folder / file)), _composed(file))
            about = next((spelled[place] for place in places if place in spelled), file)
            if _composed(about) not in spelled:
                raise _Unusable(f"is named in line {number} of {name}, and is no video or picture of the set")
            if about not in texts:
                texts[about] = _caption(caption)
        except _Unusable as why:
            refused.setdefault(about, str(why))


def _entry(line: str) -> tuple[str, str]:
    """The file and the caption of a line."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise _Unusable("is no line of JSON: write one object a line") from None
    if not isinstance(entry, dict):
        raise _Unusable("is no JSON object: write file_name and text")
    file, caption = (next((entry[key] for key in keys if key in entry), None) for keys in (_FILE, _CAPTION))
    if not isinstance(file, str) or not isinstance(caption, str):
        raise _Unusable("has not both a file and a caption: write file_name and text")
    return file.replace("\\", "/").removeprefix("./"), caption


def _text(read: Callable[[str], bytes], name: str, size_bytes: int, most_bytes: int) -> str:
    if size_bytes > most_bytes:
        raise _Unusable(f"its text has {size_bytes:,} bytes: write at most {most_bytes:,}")
    encoded = read(name)
    encoding = next((encoding for mark, encoding in _MARKS if encoded.startswith(mark)), "utf-8")
    try:
        return encoded.decode(encoding)
    except UnicodeDecodeError:
        raise _Unusable("its text is not UTF-8: save it as UTF-8") from None


def _caption(text: str) -> str:
    caption = " ".join(text.split())
    if not caption:
        raise _Unusable("its caption is empty: write what the file shows")
    if len(caption) > MAX_PROMPT_CHARACTERS:
        raise _Unusable(f"its caption has {len(caption):,} characters: write at most {MAX_PROMPT_CHARACTERS:,}")
    if any(ord(letter) < 32 or "\ud800" <= letter <= "\udfff" for letter in caption):
        raise _Unusable("its caption holds what is no text: save it as UTF-8")
    return caption
