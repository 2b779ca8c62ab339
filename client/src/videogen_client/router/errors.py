"""What can go wrong in the router.

VideoGenError
├── PolicyInvalid           the policy file: every problem, with its path
├── RequestRefused          the request: every problem, with its path
├── KeyReused               the key belongs to another request
├── NoCandidate             no backend may make the video; `route` says why not, for each
├── JobUnknown              the store has no such job
└── BackendError            what a backend raises
    ├── Refused             the service did not take the job: this is certain
    ├── Lost                no answer: the service may have taken the job
    ├── Unreadable          a question had no answer; the job goes on
    └── Gone                the service does not know the job
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import VideoGenError


@dataclass(frozen=True)
class Problem:
    """`path` is dotted, as in `backends.own.max_pixels`."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class _WithProblems(VideoGenError):
    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = list(problems)


class PolicyInvalid(_WithProblems):
    pass


class RequestRefused(_WithProblems):
    pass


class KeyReused(VideoGenError):
    pass


class NoCandidate(VideoGenError):
    """`route` has one entry for each candidate: `backend`, `chosen`, `why`."""

    def __init__(self, route: Sequence[Mapping[str, Any]]) -> None:
        reasons = "; ".join(f"{each['backend']}: {each['why']}" for each in route)
        super().__init__(f"no backend may make this video: {reasons}")
        self.route = list(route)


class JobUnknown(VideoGenError):
    pass


class BackendError(VideoGenError):
    """`retryable`: another backend may do it, and so may this one later. False where the request is at fault."""

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


class Refused(BackendError):
    pass


class Lost(BackendError):
    pass


class Unreadable(BackendError):
    pass


class Gone(BackendError):
    pass
