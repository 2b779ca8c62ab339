"""The LoRAs of a request: pairs as two, and the expert that a file's name says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal
from urllib.parse import unquote, urlsplit

from worker.request.catalogue import ModelSpec
from worker.request.payload import MAX_LORAS, LoraInput
from worker.request.problems import Problems
from worker.request.values import Lora

# `high_noise`, `HighNoise`, `_HN`; a bare `_high` only at the end, or before what is no word of a style: a version, a
# precision, a task. `high_quality` and `low_poly` say nothing of noise.
_SAYS = {
    side: re.compile(
        rf"{side}[ _.-]?noise|(?<![a-z]){side}(?=$|[ _.-]+(?:v?\d[\w.]*|e\d+|lora|model|expert|rank\d*|step\w*|fp\d+|"
        r"bf16|i2v|t2v|epoch\w*|pass)(?:$|[ _.-]))",
        re.IGNORECASE,
    )
    for side in ("high", "low")
}
_SHORT = {"high": re.compile(r"(?<![A-Za-z])HN(?![A-Za-z])"), "low": re.compile(r"(?<![A-Za-z])LN(?![A-Za-z])")}


def expert_of(source: str) -> Literal["high", "low"] | None:
    """The expert that the file's name in `source` says; None where it says neither or both."""
    stem = unquote(urlsplit(source).path).rpartition("/")[2].rpartition(".")[0]
    high, low = (bool(_SAYS[side].search(stem) or _SHORT[side].search(stem)) for side in ("high", "low"))
    return None if high == low else "high" if high else "low"


def loras_of(sent: Sequence[LoraInput], spec: ModelSpec, problems: Problems) -> tuple[Lora, ...]:
    """At most MAX_LORAS, each a source or a pair, else refused; a warning for each whose expert is from its name."""
    loras: list[Lora] = []
    for index, each in enumerate(sent):
        place = f"loras[{index}]"
        _one_or_a_pair(each, place, problems)
        if each.source is None:
            pair: tuple[tuple[Literal["high", "low"], str | None], ...] = (("high", each.high), ("low", each.low))
            loras += [Lora(source or "", float(each.scale), side, f"{place}.{side}") for side, source in pair]
            continue
        expert = each.expert
        if expert is None and spec.boundary_ratio is not None and (expert := expert_of(each.source)) is not None:
            problems.warn(f"{place}.expert", f"{expert}, from the file's name; send expert to have it otherwise")
        loras.append(Lora(each.source, float(each.scale), expert or "both", f"{place}.source"))
    if len(loras) > MAX_LORAS:
        problems.refuse("loras", f"are {len(loras)} files, two for each pair; send at most {MAX_LORAS}")
    return tuple(loras)


def _one_or_a_pair(each: LoraInput, place: str, problems: Problems) -> None:
    """Refuse what is neither, and an expert beside a pair."""
    of_pair = [side for side in (each.high, each.low) if side is not None]
    if each.source is not None and of_pair:
        problems.refuse(f"{place}.source", "cannot stand beside high and low")
    elif each.source is None and len(of_pair) < 2:
        if problems.none_in(place, f"{place}.high", f"{place}.low"):
            problems.refuse(f"{place}.source", "is missing: send it, or both high and low")
    elif of_pair and each.expert is not None:
        problems.refuse(f"{place}.expert", "cannot stand beside high and low")
