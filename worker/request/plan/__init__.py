"""The memory plan: a pure function of GPU, model, settings and request. No torch, no device, no environment.

`videogen plans --gpu L40S` prints the plans for a GPU; without a name, the table of all of them.
"""

from worker.request.plan.gpus import GPUS, Gpu, from_name
from worker.request.plan.ladder import STANDARD, Rung
from worker.request.plan.plan import MemoryPlan, Planner
from worker.request.plan.sizes import SIZES, ModelSize, Shape, size_of

__all__ = [
    "GPUS",
    "SIZES",
    "STANDARD",
    "Gpu",
    "MemoryPlan",
    "ModelSize",
    "Planner",
    "Rung",
    "Shape",
    "from_name",
    "size_of",
]
