"""Cases of a parametrised test that only `make test-all` runs, where one case in `make test` holds the same rule."""

from __future__ import annotations

from typing import Any

import pytest


def slow(*cases: Any) -> list[Any]:
    """Each case, a tuple where the test has several parameters, marked as slow."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]
