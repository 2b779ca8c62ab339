"""The GPU: a request becomes latents, latents become frames."""

from worker.engine.denoise import Watcher
from worker.engine.engine import DeviceLost, Engine, Rendering
from worker.engine.modes.base import Conditioning
from worker.engine.preview import Preview
from worker.engine.video import Video

__all__ = ["Conditioning", "DeviceLost", "Engine", "Preview", "Rendering", "Video", "Watcher"]
