"""What the docs say that the worker writes is what the worker writes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.unit.repository.test_docs import section

ROOT = Path(__file__).resolve().parents[3]
# The tables whose first column holds what the worker writes: the page and its heading, "" for all of the page.
SYMPTOMS = (("troubleshooting.md", ""), ("monitoring-and-cost.md", "Logs"))
# What stands there in code and is written by RunPod, by a tool or by the browser.
WRITTEN_BY_OTHERS = {"IN_QUEUE", "TIMED_OUT", "FAILED", "COMPLETED", ".venv", "outputs", "data:", "refresh_worker"}


def messages() -> list[str]:
    """Every text in the code, with a NUL for each value that is put in; constants that are put in are written out."""
    found: list[str] = []
    for path in [ROOT / "handler.py", *ROOT.glob("worker/**/*.py"), *ROOT.glob("builder/**/*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        constants = {
            target.id: _text(node.value, {})
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant | ast.JoinedStr)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        texts = (_text(node, constants) for node in ast.walk(tree) if isinstance(node, ast.Constant | ast.JoinedStr))
        found += [re.sub(r"%[-\d.]*[sdgrf]", "\0", " ".join(text.split())) for text in texts if text.strip()]
    return [*found, *(ROOT / "builder" / "image.sh").read_text(encoding="utf-8").splitlines()]


def _text(node: ast.expr, constants: dict[str, str]) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, constants) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return constants.get(node.value.id, "\0") if isinstance(node.value, ast.Name) else "\0"
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def is_written(quoted: str, texts: list[str]) -> bool:
    """One of the texts holds the words of `quoted`, in their order; `...` stands for anything."""
    pattern = re.compile(".*".join(re.escape(words.strip()) for words in quoted.split("...")), re.DOTALL)
    return any(pattern.search(text) for text in texts)


def quoted_symptoms() -> list[str]:
    rows: list[str] = []
    for name, heading in SYMPTOMS:
        page = (ROOT / "docs" / name).read_text(encoding="utf-8")
        rows += re.findall(r"^\| (.*?) (?<!\\)\|", section(page, heading) if heading else page, re.MULTILINE)
    return sorted({quoted for row in rows for quoted in re.findall(r"`([^`]+)`", row)} - WRITTEN_BY_OTHERS)


@pytest.mark.slow
def test_every_message_that_the_docs_quote_is_written_by_the_code() -> None:
    texts, quoted = messages(), quoted_symptoms()
    assert len(quoted) > 50
    assert [message for message in quoted if not is_written(message, texts)] == []


def test_a_message_that_nobody_writes_is_noticed() -> None:
    texts = ["the hub has no such model (\0): correct it", "plain words"]
    assert is_written("no such model (...): correct", texts)
    assert not is_written("no such model (...): mend", texts)
    assert not is_written("correct it ... plain words", texts)
    assert is_written("webhook ... is undelivered and ...: ...", ["webhook \0 is undelivered and \0: \0"])


def test_what_is_written_by_others_is_still_quoted() -> None:
    pages = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name, _ in SYMPTOMS)
    assert [text for text in WRITTEN_BY_OTHERS if f"`{text}`" not in pages] == []
