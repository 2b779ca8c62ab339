"""What a caller asks of the router. One request is one video."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from .errors import Problem, RequestRefused

Mode = Literal["text", "image", "first_last", "video"]
Tier = Literal["preview", "draft", "standard", "premium"]
DEFAULT_PIXELS = 832 * 480


class VideoRequest(BaseModel):
    """`extras` are fields of one backend, by its name: they are sent as they are, over those that the router fills in.

    Lengths are in seconds of video, `deadline_s` in seconds from the submission.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    prompt: str = Field(min_length=1)
    tier: Tier = "standard"
    tenant: str = Field(default="default", min_length=1)
    negative_prompt: str | None = None
    reference_image_url: str | None = None
    last_image_url: str | None = None
    reference_video_url: str | None = None
    width: PositiveInt | None = None
    height: PositiveInt | None = None
    duration_seconds: PositiveFloat = 5.0
    fps: PositiveInt | None = None
    seed: int | None = None
    loras: tuple[dict[str, Any], ...] = ()
    audio: bool = False
    max_cost_usd: PositiveFloat | None = None
    deadline_s: PositiveFloat | None = None
    extras: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> VideoRequest:
        """Raises RequestRefused with every problem."""
        try:
            # JSON has no tuples: strict reading of Python values would refuse the list of LoRAs.
            return cls.model_validate_json(json.dumps(dict(fields)))
        except (TypeError, ValueError) as failure:
            raise RequestRefused(problems_of(failure)) from failure

    @property
    def mode(self) -> Mode:
        if self.reference_video_url is not None:
            return "video"
        if self.last_image_url is not None:
            return "first_last"
        return "text" if self.reference_image_url is None else "image"

    @property
    def pixels(self) -> int:
        """Of a frame. Not given: the size that Wan 2.2 A14B has by default."""
        return DEFAULT_PIXELS if self.width is None or self.height is None else self.width * self.height


def problems_of(failure: Exception) -> list[Problem]:
    """The problems that pydantic found, each with the dotted path of its field."""
    if not isinstance(failure, ValidationError):
        return [Problem("", str(failure))]
    return [Problem(".".join(map(str, each["loc"])), each["msg"]) for each in failure.errors()]
