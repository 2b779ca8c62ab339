"""Fields that a payload has and we do not: ignored with a warning, or refused where one of ours was meant."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from rapidfuzz.distance import OSA

from worker.request.foreign import Foreign, plain
from worker.request.problems import Problems

MAX_FIELDS = 1_000
_MAX_NAMED_UNKNOWN_FIELDS = 20
# No name of ours is nearly as long.
_MAX_COMPARED_CHARACTERS = 40


def unknown_fields(
    item: Mapping[str, Any], known: frozenset[str], foreign: Mapping[str, Foreign], problems: Problems
) -> None:
    """Warn of fields that are not read; a name of `foreign`, or one that resembles a known one, becomes a problem."""
    if len(item) > MAX_FIELDS:
        problems.refuse_all(f"has {len(item):,} fields; send at most {MAX_FIELDS:,}")
        return
    names = [(str(name), value) for name, value in item.items() if name not in known]
    warned = 0
    for name, value in names:
        shown = name if name.isprintable() and len(name) <= 80 else "(a name that cannot be shown)"
        # null is "not given", whatever its name.
        complaint = None if value is None else _complaint(name, known, foreign, problems)
        if complaint is not None:
            problems.refuse(shown, complaint)
        elif warned < _MAX_NAMED_UNKNOWN_FIELDS:
            problems.warn(shown or '""', "unknown field, ignored")
            warned += 1
    if len(names) > _MAX_NAMED_UNKNOWN_FIELDS:
        problems.warn("", f"{len(names)} unknown fields in all, ignored")


def _complaint(name: str, known: frozenset[str], foreign: Mapping[str, Foreign], problems: Problems) -> str | None:
    if len(name) > _MAX_COMPARED_CHARACTERS:
        return None
    if (entry := foreign.get(plain(name))) is not None:
        return entry.complaint()
    meant = _plain_names(known).get(plain(name))
    if meant is None and problems.found.names_to_compare > 0:
        problems.found.names_to_compare -= 1
        meant = _resembles(name, known)
    return None if meant is None else f"is not a field; did you mean {meant}?"


@functools.cache
def _plain_names(known: frozenset[str]) -> Mapping[str, str]:
    return {plain(name): name for name in known}


def _resembles(name: str, known: frozenset[str]) -> str | None:
    """The known name of which `name` is a slip of the pen: one to three letters too many, too few, wrong or swapped."""
    sent = plain(name)
    distances = []
    for candidate, own in _plain_names(known).items():
        # `prompt_id` and `parent_model` are fields of the sender's own: a whole word more is no slip.
        if name.startswith(f"{own}_") or name.endswith(f"_{own}"):
            continue
        shorter = min(len(sent), len(candidate))
        most = 0 if shorter < 4 else 1 if shorter < 6 else 2 if shorter < 12 else 3
        if (distance := OSA.distance(sent, candidate, score_cutoff=most)) <= most:
            distances.append((distance, own))
    return min(distances)[1] if distances else None
