"""The words that this repository does not use, and what to write in their place: `python -m builder.words [PATH ...]`.

Looks at Markdown (without code) and at the strings and comments of Python files, docstrings and messages among them.
Without paths it looks at `CHECKED`. Prints a line for each word found and ends with status 1 where there is one.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKED = ("README.md", "docs", "handler.py", "worker", "builder", "benchmarks", "training", "examples", "client")
# A regular expression of whole words, without regard to case -> what to write.
WORDS: Mapping[str, str] = {
    "told|tells|telling": "reported, sent, logged, says",
    "lies|lie|lain": "is stored, is in",
    "mend|mends|mended|mending": "fix, correct, repair",
    "anew": "again",
    "commonest": "most common",
    "at hand": "available",
    "in vain": "without effect",
    "in hand": "current",
    "(?:give|gives|gave|given|giving) up": "stop, drop",
    "(?:is|be|are|was) had": "exists, is available",
    "borne": "tolerated",
    "heretofore|whereupon|thereupon|hitherto": "before, then",
}
# At the beginning of a sentence of a Python file, where it stands for a verb.
SENTENCES: Mapping[str, str] = {"Answers": "Returns"}
# Files in which a word has its ordinary meaning.
EXCEPTIONS: Mapping[str, frozenset[str]] = {}
_SENTENCE = r"(?:^|[.:;]\s+|\"\"\"\s*)"


def found_in(text: str, name: str) -> Iterator[tuple[int, str, str]]:
    """Line number, word and replacement for each word of `text` that should not be there; `name` ends as its file."""
    is_python = name.endswith(".py")
    shown = _python(text) if is_python else _markdown(text)
    rules = [(rf"\b(?:{words})\b".replace(" ", r"\s+"), re.IGNORECASE, instead) for words, instead in WORDS.items()]
    if is_python:
        rules += [(rf"{_SENTENCE}{word}\b", re.MULTILINE, instead) for word, instead in SENTENCES.items()]
    for pattern, flags, instead in rules:
        for match in re.finditer(pattern, shown, flags):
            word = " ".join(re.findall(r"\w+", match[0]))
            if word.lower() not in EXCEPTIONS.get(name, ()):
                yield shown.count("\n", 0, match.end()) + 1, word, instead


def _markdown(text: str) -> str:
    """`text` without code, on the same lines."""

    def blank(match: re.Match[str]) -> str:
        return "\n" * match[0].count("\n")

    without_blocks = re.sub(r"^ *```.*?^ *```$", blank, text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`]+`", blank, without_blocks)


def _python(text: str) -> str:
    """The strings and comments of a Python file, on their lines; without names: single words, backticks and braces."""
    lines = [""] * (text.count("\n") + 2)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in _SHOWN and not token.string.strip("\"'").isidentifier():
            for number, line in enumerate(token.string.splitlines(), token.start[0]):
                lines[number - 1] += " " + re.sub(r"`[^`]+`|\{[^}]*\}", "", line.lstrip("# "))
    return "\n".join(line.strip() for line in lines)


# From Python 3.12 on an f-string is several tokens.
_SHOWN = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}


def files(paths: Iterable[str]) -> Iterator[Path]:
    """The Markdown and Python files among and below `paths`, which are relative to the root of the repository."""
    for name in paths:
        path = ROOT / name
        inside = [path] if path.is_file() else sorted(path.rglob("*"))
        yield from (each for each in inside if each.suffix in (".md", ".py") and each != Path(__file__).resolve())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m builder.words", description="Look for words that are not used.")
    parser.add_argument("paths", nargs="*", default=CHECKED, metavar="PATH", help="a file or folder; all by default")
    number = 0
    for path in files(parser.parse_args(arguments).paths):
        name = path.relative_to(ROOT).as_posix()
        for line, word, instead in found_in(path.read_text(encoding="utf-8"), name):
            number += 1
            print(f"{name}:{line}: {word!r}: write {instead}", file=sys.stderr)
    return 1 if number else 0


if __name__ == "__main__":
    sys.exit(main())
