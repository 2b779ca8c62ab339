"""Several GPUs on one video: one process a GPU, which share each denoising step between them.

The lead is the worker itself and alone speaks to RunPod; its followers hold the same models and do what it orders.
A process without others is a crew of its own (`Alone`), so that the engine has one way of working.
"""

from worker.engine.distributed.base import ALONE, Alone, Crew, CrewLost, Dismissed

__all__ = ["ALONE", "Alone", "Crew", "CrewLost", "Dismissed"]
