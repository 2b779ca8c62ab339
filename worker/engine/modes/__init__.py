"""The modes that this worker serves: a literal registry, one file a mode."""

from __future__ import annotations

from collections.abc import Mapping

from worker.engine.modes.base import VideoMode
from worker.engine.modes.pipelines import FirstLastFrame, ImageToVideo, TextToVideo
from worker.engine.modes.video_to_video import VideoToVideo
from worker.request import Mode

MODES: Mapping[Mode, VideoMode] = {
    mode.name: mode for mode in (TextToVideo(), ImageToVideo(), FirstLastFrame(), VideoToVideo())
}
