"""`verify`: what a file says of its origin, and whether it was changed since it was signed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from worker.cli import terminal
from worker.cli.failures import DONE, FAILED, usage
from worker.media.marks import reading
from worker.media.marks.reading import Marks, State

# A changed file is the failure that a script must not miss; the others say that a proof is missing.
UNSIGNED, UNTRUSTED = 3, 4
STATUS = {"trusted": DONE, "signed": DONE, "changed": FAILED, "tagged": UNSIGNED, "unmarked": UNSIGNED}
_WORDS: dict[State, str] = {
    "trusted": "signed, unchanged, and the signer is trusted",
    "signed": "signed and unchanged",
    "changed": "CHANGED since it was signed, or damaged",
    "tagged": "marked, but not signed: anybody could have written or changed it",
    "unmarked": "no mark of its origin was found",
}
_ORIGIN = {
    "trainedAlgorithmicMedia": "made by AI",
    "compositeWithTrainedAlgorithmicMedia": "made by AI from a picture or video",
}


def run(file: str, *, anchors: str | None, as_json: bool) -> int:
    """The exit status. Raises CommandFailed for a file that is not there or cannot be read."""
    pem = None if anchors is None else _text(anchors, "--anchors")
    path = Path(file)
    try:
        marks = reading.read(path, trust_anchors=pem)
    except OSError as failure:
        raise usage(f"{file}: {failure.strerror or 'cannot be read'}") from failure
    untrusted = marks.state == "signed" and anchors is not None
    if as_json:
        terminal.show([json.dumps(asdict(marks), ensure_ascii=False, indent=2)])
    else:
        terminal.show([f"{name:<10} {value}" for name, value in _lines(marks, untrusted).items() if value])
    return UNTRUSTED if untrusted else STATUS[marks.state]


def _lines(marks: Marks, untrusted: bool) -> dict[str, str | None]:
    signed = marks.signer is not None
    by = " of ".join(filter(None, (marks.signer, marks.issuer)))
    term = marks.digital_source_type
    return {
        "result": _WORDS[marks.state] + (", but the signer is NOT trusted by --anchors" if untrusted else ""),
        "origin": term and f"{_ORIGIN.get(term, 'see IPTC')} ({term})",
        "signer": by or None,
        "time": (marks.signed_at or "no time stamp") if signed else None,
        "software": " with ".join(filter(None, (marks.software, marks.model))) or None,
        "id": marks.instance_id,
        "made from": str(marks.ingredients) + " of the caller's files" if marks.ingredients else None,
        "AIGC": f"producer {marks.aigc.get('ContentProducer')}" if marks.aigc else None,
        "problems": ", ".join(marks.problems) or None,
    }


def _text(path: str, flag: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except (OSError, ValueError) as failure:
        raise usage(f"{flag}: {path} is not a file of PEM certificates that can be read") from failure
