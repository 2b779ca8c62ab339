"""What tests of several checks share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kits import s3_double
from tests.kits.doctor_kit import Bucket, configure


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[s3_double.Double]:
    """The strict S3 double, configured as the storage."""
    monkeypatch.setattr(s3_double, "Handler", Bucket)
    with s3_double.serving() as double:
        configure(monkeypatch, double.endpoint_url)
        yield double
