"""The version of the worker."""

from __future__ import annotations

VERSION = "0.1.0"
