"""A floor under what a LoRA training teaches, well under what was measured (docs/training.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.train import asked, shown
from training import looks, train_look
from training.train_look import by_expert
from worker.training.train import Watcher

# Of one expert, fewer than are measured, and few prompts: it ends in a minute on one core.
_STEPS = 150
_PROMPTS = 3


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_training_teaches_a_ground_that_the_model_never_saw_and_spares_those_that_it_knows(tmp_path: Path) -> None:
    engine, new, known = train_look.engine(), asked(_PROMPTS, looks.PLACE), asked(_PROMPTS, None)
    loras = by_expert(train_look.trained(engine, train_look.request(_STEPS, experts="low"), tmp_path, Watcher()))
    before, after, other = (shown(engine, new, []), shown(engine, new, loras), shown(engine, known, loras))
    assert before.moss == 0
    assert after.moss > 0
    assert after.green > before.green + 0.05
    assert other.moss == 0
    assert other.colour == 1
