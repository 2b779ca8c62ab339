"""The modes that this worker serves: a literal registry, one file a mode."""

from __future__ import annotations

from collections.abc import Mapping

from worker.models import Mode
from worker.modes.base import VideoMode
from worker.modes.first_last_frame import FirstLastFrame
from worker.modes.image_to_video import ImageToVideo
from worker.modes.text_to_video import TextToVideo
from worker.modes.video_to_video import VideoToVideo

MODES: Mapping[Mode, VideoMode] = {
    mode.name: mode for mode in (TextToVideo(), ImageToVideo(), FirstLastFrame(), VideoToVideo())
}
