"""A floor under what a LoRA training teaches: it lies well under what was measured (docs/training.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.train import asked, shown
from training import looks, train_look
from worker.training.train import Watcher

# Half of what is measured, so that it ends in a minute on one core.
_STEPS = train_look.STEPS // 2
_PROMPTS = 3


@pytest.mark.slow
def test_a_training_teaches_a_ground_that_the_model_never_saw(tmp_path: Path) -> None:
    engine, prompts = train_look.engine(), asked(_PROMPTS, looks.PLACE)
    found = train_look.trained(engine, train_look.request(_STEPS), tmp_path, Watcher())
    before, after = (shown(engine, prompts, loras) for loras in ([], train_look.by_expert(found)))
    assert before.moss == 0
    assert after.moss > 0
    assert after.green > before.green + 0.05
