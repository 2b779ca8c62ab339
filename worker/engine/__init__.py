"""The GPU: a request becomes latents, latents become frames."""

from worker.engine.denoise import Watcher
from worker.engine.engine import DeviceLost, Engine, Rendering
from worker.engine.modes.base import Conditioning

__all__ = ["Conditioning", "DeviceLost", "Engine", "Rendering", "Watcher"]
