"""What is known of a file's origin: the values that its marks hold and its result reports.

Source of the terms: IPTC, https://cv.iptc.org/newscodes/digitalsourcetype/.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"
GENERATOR = "VideoGen-RunPod"

DigitalSourceType = Literal["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a file comes from. Nothing in it is the caller's: neither prompt nor job id.

    `model` is the result's `model_version`. `composite`: a picture or video of the caller's went in. `ingredients` are
    those, each as `worker.media.marks.ingredients` keeps it. `instance_id` is that of one file, see `of_file`.
    """

    model: str
    composite: bool = False
    ingredients: tuple[bytes, ...] = ()
    instance_id: str = ""

    def of_file(self, sha256: str) -> Origin:
        """That of the file with this digest before it is marked: the same bytes are marked alike, made again or not."""
        return replace(self, instance_id=f"xmp:iid:{uuid.uuid5(uuid.NAMESPACE_OID, sha256)}")

    @property
    def digital_source_type(self) -> DigitalSourceType:
        return "compositeWithTrainedAlgorithmicMedia" if self.composite else "trainedAlgorithmicMedia"

    @property
    def uri(self) -> str:
        return VOCABULARY + self.digital_source_type


@dataclass(frozen=True, slots=True)
class Provenance:
    """How a file is marked. `notes` are for the result's warnings."""

    digital_source_type: DigitalSourceType
    instance_id: str
    signed: bool = False
    timestamped: bool = False
    notes: tuple[str, ...] = ()

    def as_dict(self) -> Mapping[str, object]:
        """The result's `provenance`."""
        return {
            "digital_source_type": self.digital_source_type,
            "c2pa": "signed" if self.signed else "off",
            "timestamped": self.timestamped,
            "instance_id": self.instance_id,
        }


def ingredient_id(number: int) -> str:
    return f"source_{number}"


def described(number: int) -> dict[str, str]:
    """An ingredient. Neither title nor id are the file's own: they may name somebody."""
    name = ingredient_id(number)
    # A manifest may have one parent; the second picture is placed beside it.
    return {"title": name, "label": name, "instance_id": name, "relationship": "componentOf" if number else "parentOf"}
