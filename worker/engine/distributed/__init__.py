"""Several GPUs on one video: one process a GPU, which share each denoising step between them.

The field calls this distributed inference. The leader is the worker itself and alone talks to RunPod; its followers
hold the same models and carry out its orders. A single process is a crew of its own (`Alone`), so that the engine has
one way of working.
"""

from worker.engine.distributed.base import ALONE, Alone, Crew, CrewLost, Dismissed

__all__ = ["ALONE", "Alone", "Crew", "CrewLost", "Dismissed"]
