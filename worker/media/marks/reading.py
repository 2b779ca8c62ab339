"""What the marks of a file say, and whether it was changed since it was signed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from c2pa import C2paError, Context, Reader

from worker.media.marks.provenance import VOCABULARY, DigitalSourceType
from worker.media.marks.signing import offline

# trusted: signed by somebody whom the trust anchors vouch for; signed: by somebody else, or there are no anchors to
# ask; changed: the file is not what was signed; tagged: no signature, but metadata; unmarked: neither.
State = Literal["trusted", "signed", "changed", "tagged", "unmarked"]

# No end can be asked for: in a Matroska file the next element follows at once.
_TERM = re.compile(f"{re.escape(VOCABULARY)}({'|'.join(get_args(DigitalSourceType))})".encode())
_LABEL = re.compile(rb'\{"Label":[^{}]*"ContentProducer":[^{}]*\}')
_CLAIM = b"c2pa.signature"
_BLOCK_BYTES = 1 << 20
_OVERLAP_BYTES = 2000  # more than a mark is long
_UNTRUSTED = "signingCredential.untrusted"


@dataclass(frozen=True, slots=True)
class Marks:
    """What is known of a file; None for what its marks do not say.

    `signed_at` is the time stamp's, as ISO 8601. `software` is the program, `model` the model that made it.
    `ingredients` counts what went in, `problems` are C2PA's codes of what is wrong. `aigc` is China's label.
    """

    state: State
    digital_source_type: str | None = None
    signer: str | None = None
    issuer: str | None = None
    signed_at: str | None = None
    software: str | None = None
    model: str | None = None
    instance_id: str | None = None
    ingredients: int = 0
    aigc: Mapping[str, str] | None = None
    problems: tuple[str, ...] = ()


def read(path: Path, *, trust_anchors: str | None = None) -> Marks:
    """The marks of a file. `trust_anchors` are certificates of authorities, as PEM. Raises OSError.

    A signature is judged by the file's bytes alone: nothing is fetched.
    """
    term, label, held = _scan(path)
    tagged = Marks("unmarked" if term is None and label is None else "tagged", term, aigc=label)
    with path.open("rb") as file, _context(trust_anchors) as context:
        try:
            reader = Reader(_suffix(path), file, context=context)
        except C2paError as failure:
            # A manifest that the bytes hold was found once: the way to it is broken.
            return replace(tagged, state="changed", problems=(str(failure),)) if held else tagged
        with reader:
            return _marks(json.loads(reader.json()), trust_anchors is not None, label)


def _marks(store: Mapping[str, Any], anchored: bool, label: Mapping[str, str] | None) -> Marks:
    claim = store["manifests"][store["active_manifest"]]
    actions = [
        action
        for assertion in claim.get("assertions", ())
        if assertion["label"].startswith("c2pa.actions")
        for action in assertion["data"]["actions"]
    ]
    made: Mapping[str, Any] = next((action for action in actions if "digitalSourceType" in action), {})
    agent = made.get("softwareAgent") or {}
    generator = (claim.get("claim_generator_info") or [{}])[0]
    signature = claim.get("signature_info") or {}
    problems = tuple(dict.fromkeys(status["code"] for status in store.get("validation_status", ())))
    state: State = "changed"
    if store["validation_state"] != "Invalid":
        state = "trusted" if anchored and store["validation_state"] == "Trusted" else "signed"
    return Marks(
        state,
        made.get("digitalSourceType", "").rpartition("/")[2] or None,
        signature.get("common_name"),
        signature.get("issuer"),
        signature.get("time"),
        " ".join(generator[name] for name in ("name", "version") if name in generator) or None,
        agent.get("model") if isinstance(agent, Mapping) else None,
        claim.get("instance_id"),
        len(claim.get("ingredients", ())),
        label,
        tuple(code for code in problems if anchored or code != _UNTRUSTED),
    )


def _context(trust_anchors: str | None) -> Context:
    return offline() if trust_anchors is None else offline(trust={"trust_anchors": trust_anchors})


def _suffix(path: Path) -> str | None:
    """The kind of file as the library wants it; None lets it look."""
    suffix = path.suffix[1:].lower()
    return suffix if suffix in Reader.get_supported_mime_types() else None


def _scan(path: Path) -> tuple[str | None, Mapping[str, str] | None, bool]:
    """IPTC's term, China's label, and whether there is a manifest of C2PA.

    All containers hold them as plain text, so that one search finds them.
    """
    term, label, held, rest = None, None, False, b""
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            text = rest + block
            term = term or _TERM.search(text)
            label = label or _LABEL.search(text.replace(b"&quot;", b'"'))
            held = held or _CLAIM in text
            rest = text[-_OVERLAP_BYTES:]
    try:
        found = None if label is None else json.loads(label[0])
    except ValueError:
        found = None
    return (None if term is None else term[1].decode()), found, held
