"""What the caller reads of a training. Pure functions of frozen values.

Source of the shapes: section 10 of the public contract.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from worker.delivery.storage.base import LORA_SUFFIX
from worker.request.training import TrainingRequest
from worker.training import Dataset
from worker.training.plan import TrainingPlan
from worker.training.train import TrainedExpert

SAMPLES = ("before", "after")


def common(request: TrainingRequest, dataset: Dataset, plan: TrainingPlan, *, job_id: str, gpu: str) -> dict[str, Any]:
    """What a training and a dry run report alike."""
    return {
        "job_id": job_id,
        "status": "completed",
        "model_version": request.model.version,
        "parameters": {
            "width": request.width,
            "height": request.height,
            "num_frames": request.num_frames,
            "rank": request.rank,
            "alpha": request.alpha,
            "trigger_phrase": request.trigger_phrase,
            "caption_dropout": request.caption_dropout,
            "experts": [
                {"expert": each.expert, "steps": each.steps, "learning_rate": each.learning_rate}
                for each in request.experts
            ],
            "memory_plan": str(plan),
        },
        "seed": request.seed,
        "dataset": dataset.report(),
        "warnings": list(request.warnings),
        "gpu": gpu,
    }


def steps(request: TrainingRequest) -> int:
    """Of all experts."""
    return sum(each.steps for each in request.experts)


def diverged(experts: Sequence[TrainedExpert]) -> list[str]:
    """A warning of each expert that ended before its last step though nobody stopped it."""
    return [
        f"train.learning_rate: the training of {name_of(each)} diverged after {each.learned.progress.step} of "
        f"{each.learned.training.steps} steps, what is delivered is the best before: send a lower one"
        for each in experts
        if each.learned.progress.step < each.learned.training.steps
    ]


def name_of(expert: TrainedExpert) -> str:
    """The expert as results name it; a model with a single one has `both`."""
    return expert.learned.training.expert or "both"


def stem(name: str) -> str:
    """The name of an expert's file, without its suffix."""
    return "lora" if name == "both" else name


def pasted(names: Sequence[str], urls: Mapping[str, str]) -> list[dict[str, Any]]:
    """What is to be pasted into a request as its `loras`. `urls` are by the names of files."""
    found = {name: urls[stem(name) + LORA_SUFFIX] for name in names}
    if len(found) == 2:
        return [{**found, "scale": 1.0}]
    return [{"source": url, "expert": name, "scale": 1.0} for name, url in found.items()]
