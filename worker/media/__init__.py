"""Strangers' pictures and videos in, video files and posters out. Each decoder of foreign bytes is a bounded child."""

from worker.media.encode import VideoFile
from worker.media.formats import FORMATS, Format
from worker.media.inputs import cropped_share, fetch_video, fit, load_image, size_for

__all__ = ["FORMATS", "Format", "VideoFile", "cropped_share", "fetch_video", "fit", "load_image", "size_for"]
