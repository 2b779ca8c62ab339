"""The operator's rules, from a TOML file: backends, prices, tiers, budgets, the breaker, the quality gate."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from .backend import OnLost
from .errors import PolicyInvalid, Problem
from .request import Mode, Tier, problems_of

Kind = Literal["runpod", "openai_videos", "fal", "replicate", "runway", "google"]


def _rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("the first number is the lower one")
    return bounds


def _not_later(day: date) -> date:
    if day > datetime.now(UTC).date():
        raise ValueError("is in the future")
    return day


Bounds = Annotated[tuple[NonNegativeFloat, NonNegativeFloat], AfterValidator(_rising)]
Share = Annotated[float, Field(gt=0, le=1)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BackendTable(_Table):
    """`model` is the endpoint id of RunPod, the application of fal, the model of the others. `api_key_env` names the
    environment variable with the key. `parameters` are sent with every request, under those of the request.

    `start_s` and `seconds_per_video_second` give how long a video takes. A job that takes longer than `patience_s` is
    cancelled, and goes elsewhere once the cancel is confirmed. `bills_failures`: a failed job costs its price.

    `length_field` is the model's field for the length, as 5 (seconds), "5" (text), "5s" (text_s) or 81 (frames).
    """

    kind: Kind
    model: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    modes: frozenset[Mode] = frozenset(["text"])
    min_seconds: NonNegativeFloat = 0.0
    max_seconds: PositiveFloat | None = None
    max_pixels: PositiveInt | None = None
    loras: bool = False
    audio: bool = False
    start_s: Bounds = (0.0, 60.0)
    seconds_per_video_second: Bounds
    patience_s: PositiveFloat | None = None
    poll_s: PositiveFloat = 5.0
    on_lost: OnLost | None = None
    length_field: str | None = None
    length_as: Literal["seconds", "text", "text_s", "frames"] = "seconds"
    length_fps: PositiveInt = 16
    bills_failures: bool = True
    parameters: dict[str, Any] = Field(default_factory=dict)


class Price(_Table):
    """`usd` is the lowest and the highest price `per` second of video, video, or hour of the GPU.

    Of several prices of a backend the first one counts whose `max_pixels` and `audio` fit the request.
    """

    backend: str
    usd: Bounds
    per: Literal["video_second", "video", "gpu_hour"]
    max_pixels: PositiveInt | None = None
    audio: bool | None = None
    as_of: Annotated[date, AfterValidator(_not_later)]
    source: str = Field(min_length=1)


class TierTable(_Table):
    """`tries` is how often one candidate may be asked for one job."""

    candidates: tuple[str, ...] = Field(min_length=1)
    max_cost_usd: PositiveFloat | None = None
    deadline_s: PositiveFloat = 1800.0
    tries: PositiveInt = 2


class Tenant(_Table):
    budget_usd_per_day: PositiveFloat


class Breaker(_Table):
    """Opens where, of the last `window` outcomes within `window_s`, at least `min_calls`, `failure_rate` failed; after
    `open_s` one job is let through as a probe.
    """

    failure_rate: Share = 0.5
    window: PositiveInt = 20
    min_calls: PositiveInt = 5
    window_s: PositiveFloat = 900.0
    open_s: PositiveFloat = 60.0


class Quality(_Table):
    """`technical`: the checks of quality.py. `scorer_url` is posted `{"video_url"}`, and returns `{"score"}`."""

    technical: bool = False
    scorer_url: str | None = None
    min_score: float = 0.5


class Policy(_Table):
    """`store` is a URL of SQLAlchemy."""

    store: str = "sqlite:///router.sqlite3"
    backends: dict[str, BackendTable] = Field(min_length=1)
    prices: tuple[Price, ...] = ()
    tiers: dict[Tier, TierTable] = Field(min_length=1)
    tenants: dict[str, Tenant] = Field(default_factory=dict)
    breaker: Breaker = Breaker()
    quality: Quality = Quality()

    @classmethod
    def load(cls, path: Path) -> Policy:
        """Raises PolicyInvalid with every problem."""
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as failure:
            raise PolicyInvalid([Problem(str(path), str(failure))]) from failure
        return cls.read(tables)

    @classmethod
    def read(cls, tables: Mapping[str, Any]) -> Policy:
        """Raises PolicyInvalid with every problem."""
        problems = list(_names_at_fault(tables))
        try:
            policy = cls.model_validate(tables)
        except ValueError as failure:
            raise PolicyInvalid([*problems_of(failure), *problems]) from failure
        if problems:
            raise PolicyInvalid(problems)
        return policy

    def budget_usd(self, tenant: str) -> float | None:
        """Of a day; None where there is no limit. A tenant without a table has that of `default`, or else nothing."""
        if not self.tenants:
            return None
        table = self.tenants.get(tenant, self.tenants.get("default"))
        return 0.0 if table is None else table.budget_usd_per_day


def _names_at_fault(tables: Mapping[str, Any]) -> Iterator[Problem]:
    """Names that are used and not defined. Of tables that may be of any form: their form is checked elsewhere."""
    backends = _table(tables.get("backends"))
    prices = tables.get("prices", ())
    priced = [_table(each).get("backend") for each in prices] if isinstance(prices, list | tuple) else []
    for name, each in backends.items():
        table = _table(each)
        kind, on_lost = table.get("kind"), table.get("on_lost")
        needed = "base_url" if kind == "openai_videos" else "model"
        if needed not in table:
            yield Problem(f"backends.{name}.{needed}", "is missing")
        if on_lost == "find" and kind != "replicate":
            yield Problem(f"backends.{name}.on_lost", f"{kind} has no list of its jobs")
        if on_lost == "resubmit" and kind not in ("runpod", "openai_videos"):
            yield Problem(f"backends.{name}.on_lost", f"{kind} has no idempotency key: it would be paid twice")
        if name not in priced:
            yield Problem(f"backends.{name}", "has no price: give one under prices, with its date and source")
    for number, backend in enumerate(priced):
        if isinstance(backend, str) and backend not in backends:
            yield Problem(f"prices.{number}.backend", f"there is no backend {backend}")
    for tier, rules in _table(tables.get("tiers")).items():
        candidates = _table(rules).get("candidates", ())
        for number, candidate in enumerate(candidates if isinstance(candidates, list | tuple) else ()):
            if candidate not in backends:
                yield Problem(f"tiers.{tier}.candidates.{number}", f"there is no backend {candidate}")


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
