"""Fields that a payload has and we do not: ignored with a warning, or refused where another name was meant."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any

from worker.base.errors import Problem
from worker.request.problems import Problems, join

# Two names that are more alike are taken for a slip of the pen: `num_infrence_steps`, `webhook`, but not `image_url`.
_RESEMBLANCE = 0.8
_MAX_NAMED_UNKNOWN_FIELDS = 20
# Comparing names takes time; nobody misspells the 201st field of an object.
_MAX_COMPARED_UNKNOWN_FIELDS = 200


def unknown_fields(item: Mapping[str, Any], known: set[str], problems: Problems) -> None:
    """Warn of fields that are not read; a name that resembles a known one becomes a problem."""
    path, warned = problems.path, 0
    names = [name for name in map(str, item) if name not in known]
    for name in names[:_MAX_COMPARED_UNKNOWN_FIELDS]:
        shown = join(path, name if name.isprintable() and len(name) <= 80 else "(a name that cannot be shown)")
        if (meant := _resembles(name, known)) is not None:
            problems.found.append(Problem(shown, f"is not a field; did you mean {meant}?"))
        elif warned < _MAX_NAMED_UNKNOWN_FIELDS:
            problems.warn(shown, "unknown field, ignored")
            warned += 1
    if len(names) > _MAX_NAMED_UNKNOWN_FIELDS:
        problems.warn(path or "input", f"{len(names)} unknown fields in all, ignored")


def _resembles(name: str, known: set[str]) -> str | None:
    def plain(text: str) -> str:
        return text.lower().replace("_", "").replace("-", "")

    def own_name(candidate: str) -> bool:
        # `prompt_id` and `parent_model` are fields of the sender's own: a whole word more is no slip.
        return name.startswith(f"{candidate}_") or name.endswith(f"_{candidate}")

    scored = [
        (SequenceMatcher(None, plain(name[:80]), plain(candidate)).ratio(), candidate)
        for candidate in known
        if not own_name(candidate)
    ]
    ratio, best = max(scored, default=(0.0, ""))
    return best if ratio > _RESEMBLANCE else None
