"""The trainer learns, goes on where it was, and loses nothing by a stop."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kits import trainer_kit
from tests.kits.slow import slow
from worker.base.errors import Cancelled, InvalidRequest, OutOfMemory
from worker.base.stop import Stop
from worker.engine.bench import Bench
from worker.jobs import training_answer
from worker.training import expert
from worker.training.plan import TrainingPlan
from worker.training.train import Trained, Watcher


def digests(trained: Trained) -> list[str]:
    return [each.sha256 for each in trained.experts]


class StopAt(Watcher):
    """Stops the training when so many steps are done."""

    def __init__(self, stop: Stop, step: int) -> None:
        self._stop = stop
        self._step = step

    def training(self, done: int, steps: int, step_s: float | None) -> None:
        if done == self._step:
            self._stop.request(Cancelled())


@pytest.mark.parametrize("key", ["i2v", *slow("t2v", "5b")])
def test_every_expert_learns_what_is_held_out(key: str, tmp_path: Path) -> None:
    trained = trainer_kit.run(trainer_kit.request(key), tmp_path / "state", tmp_path)
    assert [each.learned.training.expert for each in trained.experts] == ([None] if key == "5b" else ["high", "low"])
    for each in trained.experts:
        report = each.report()
        assert report["loss_after"] < report["loss_before"]
        assert [at["step"] for at in report["losses"]] == [0, 4, 8, 12]
        assert report["loss_after"] == min(at["loss"] for at in report["losses"][1:])


def poisoned(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The gradients of step `at`, counted from 1, are no numbers, as where an activation overflows."""
    descend, steps = expert.descend, list[int]()

    def poison(masters: list[torch.Tensor], *others: Any, **more: Any) -> float:
        steps.append(len(steps) + 1)
        if steps[-1] == at:
            assert masters[0].grad is not None
            masters[0].grad.fill_(torch.nan)
        return descend(masters, *others, **more)

    monkeypatch.setattr(expert, "descend", poison)


def test_a_training_that_diverges_ends_with_its_best_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It went on to its last step, and NaN in the result is no JSON: no webhook could carry it."""
    poisoned(monkeypatch, at=7)
    trained = trainer_kit.run(trainer_kit.request(experts="high"), tmp_path / "state", tmp_path)
    (high,) = trained.experts
    assert (high.learned.best_step, high.learned.progress.step) == (4, 6)
    assert all(torch.isfinite(factor).all() for factor in high.learned.weights.values())
    json.dumps(high.report(), allow_nan=False)
    (line,) = training_answer.diverged(trained.experts)
    assert line.startswith("train.learning_rate: the training of high diverged after 6 of 12 steps")


def test_a_training_that_diverges_before_anything_is_measured_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, at=2)
    with pytest.raises(InvalidRequest, match="diverged at step 2") as caught:
        trainer_kit.run(trainer_kit.request(experts="high"), tmp_path / "state", tmp_path)
    assert caught.value.path == "train.learning_rate"


def test_a_stop_returns_the_best_so_far_and_the_next_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    wanted = trainer_kit.request()
    whole = trainer_kit.run(wanted, tmp_path / "whole", tmp_path / "1")
    for step in (3, 6, 17):
        stop = Stop()
        part = trainer_kit.run(wanted, tmp_path / "state", tmp_path / "2", stop=stop, watcher=StopAt(stop, step))
        assert sum(each.learned.progress.step for each in part.experts) == step
        assert part.experts[0].learned.best_step == {3: 3, 6: 4, 17: 12}[step]
    assert digests(trainer_kit.run(wanted, tmp_path / "state", tmp_path / "2")) == digests(whole)


def test_a_stop_before_the_first_step_is_raised(tmp_path: Path) -> None:
    stop = Stop()
    stop.request(Cancelled())
    with pytest.raises(Cancelled):
        trainer_kit.run(trainer_kit.request(), tmp_path / "state", tmp_path, stop=stop)


def test_blocks_that_are_computed_again_have_the_same_gradients(tmp_path: Path) -> None:
    wanted = trainer_kit.request(experts="high")
    plain = trainer_kit.run(wanted, tmp_path / "a", tmp_path / "1")
    again = trainer_kit.run(
        wanted, tmp_path / "b", tmp_path / "2", plan=TrainingPlan("fp32", recomputed=True, on_host=True)
    )
    for name, factor in plain.experts[0].learned.weights.items():
        torch.testing.assert_close(again.experts[0].learned.weights[name], factor)


def test_weights_in_8_bits_are_trained_on_too(tmp_path: Path) -> None:
    plan = TrainingPlan("fp8", recomputed=True)
    trained = trainer_kit.run(trainer_kit.request(experts="high"), tmp_path / "state", tmp_path, plan=plan)
    report = trained.experts[0].report()
    assert report["loss_after"] < report["loss_before"]


@pytest.mark.parametrize("times", [1, *slow(2)])
def test_out_of_memory_is_tried_once_more_as_the_next_lower_plan(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, full = Bench.expert, iter([True] * times)

    def expert(bench: Bench, number: int, *, fp8: bool) -> Any:
        if next(full, False):
            raise torch.OutOfMemoryError("full")
        assert fp8
        return load(bench, number, fp8=fp8)

    monkeypatch.setattr(Bench, "expert", expert)
    wanted, plan = trainer_kit.request(experts="high"), TrainingPlan("bf16", recomputed=True, on_host=True)
    with pytest.raises(OutOfMemory) if times == 2 else nullcontext():
        assert trainer_kit.run(wanted, tmp_path / "state", tmp_path, plan=plan).experts


def test_where_nothing_is_held_out_the_last_step_is_the_best(tmp_path: Path) -> None:
    trained = trainer_kit.run(trainer_kit.request(experts="high"), tmp_path / "state", tmp_path, held_out=0)
    (each,) = trained.experts
    assert (each.report()["loss_after"], each.learned.best_step) == (None, 12)


def test_a_damaged_checkpoint_or_cache_costs_time_and_nothing_else(tmp_path: Path) -> None:
    wanted, state = trainer_kit.request(experts="high"), tmp_path / "state"
    whole = trainer_kit.run(wanted, state, tmp_path / "1")
    for file in (state / "training").iterdir():
        file.write_bytes(b"\x00" * 100)
    assert digests(trainer_kit.run(wanted, state, tmp_path / "2")) == digests(whole)


def test_an_unwritable_state_folder_costs_the_checkpoints_and_nothing_else(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_text("no folder")
    assert trainer_kit.run(trainer_kit.request(experts="high"), state, tmp_path / "1").experts


def check_killed(folder: Path, *moments: float) -> None:
    """A training whose process is killed that long after a checkpoint, each time it goes on, writes the same files."""
    command = [sys.executable, "-m", "tests.kits.trainer_kit", str(folder), *map(str, moments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for side in ("high", "low"):
        whole, killed = (folder / name / f"{side}.safetensors" for name in ("whole", "killed"))
        assert whole.read_bytes() == killed.read_bytes()


@pytest.mark.slow
def test_kills_at_ten_moments_change_no_byte(tmp_path: Path) -> None:
    drawn = random.Random(5)
    check_killed(tmp_path, *(drawn.uniform(0.0, 0.03) for _ in range(10)))
