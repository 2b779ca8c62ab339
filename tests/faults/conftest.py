"""The fixtures of whole jobs, for faults in the middle of one."""

from __future__ import annotations

from tests.flow.conftest import engine, make_runner, picture_url, platform, receiver, run

__all__ = ["engine", "make_runner", "picture_url", "platform", "receiver", "run"]
