"""The fixtures of whole jobs, for faults in the middle of one."""

from __future__ import annotations

from tests.flow.conftest import bucket, engine, make_runner, picture_url, platform, receiver, run
from tests.kits.scene import make_scene, scene

__all__ = ["bucket", "engine", "make_runner", "make_scene", "picture_url", "platform", "receiver", "run", "scene"]
