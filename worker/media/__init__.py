"""Strangers' pictures and videos in, MP4 and poster out. Every decoder of foreign bytes is a bounded child process."""

from worker.media.encode import VideoFile
from worker.media.formats import FORMATS, Format
from worker.media.inputs import fit, load_image, load_video, size_for

__all__ = ["FORMATS", "Format", "VideoFile", "fit", "load_image", "load_video", "size_for"]
