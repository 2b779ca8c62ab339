"""One expert learns: flow matching on the noise that is its own, from its last checkpoint to its last step.

The noisy latent is x = (1 - sigma) * clip + sigma * noise, the target noise - clip, the timestep 1000 * sigma. Each
step trains on one clip, in an order that is drawn again for every round. What a step draws follows from the seed and
its number alone, so that a run that goes on after a kill makes the same steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from worker.base.errors import InvalidRequest
from worker.base.stop import Stop
from worker.engine import embeddings
from worker.engine.bench import Bench
from worker.request.training import ExpertTraining, TrainingRequest
from worker.training import recompute, timesteps
from worker.training.adapter import Adapter
from worker.training.checkpoint import Checkpoint, Progress, State
from worker.training.encode import Encoded, Example
from worker.training.loop import Schedule, descend
from worker.training.plan import TrainingPlan

SAVE_EVERY_S = 300.0
_WARM_UP_STEPS = 50
_BETAS = (0.9, 0.99)
_HELD_OUT_CLIPS = 8
# Names of the tensors of a checkpoint.
_MASTER, _MOMENTS, _BEST = "master", ("exp_avg", "exp_avg_sq"), "best"


@dataclass(frozen=True, slots=True)
class Learned:
    """What became of one expert: `weights` are the LoRA's best factors, by PEFT's names within the transformer.

    Of a run that was stopped, or that diverged, `progress.step` is below the steps that were asked for.
    """

    training: ExpertTraining
    progress: Progress
    weights: dict[str, torch.Tensor]

    @property
    def best_step(self) -> int:
        """Of `weights`: the last step where nothing was held out or measured."""
        best = self.progress.best_step
        return self.progress.step if best is None else best


def train(
    training: ExpertTraining,
    request: TrainingRequest,
    data: Encoded,
    bench: Bench,
    plan: TrainingPlan,
    checkpoint: Checkpoint,
    *,
    stop: Stop,
    on_step: Callable[[int], None] = lambda _: None,
) -> Learned | None:
    """Train one expert to its last step, or until `stop`: then what is best so far, None where there is nothing yet.

    One that diverges ends there too. `on_step` gets the number of steps that are done. Raises ModelUnavailable,
    InvalidRequest where it diverges before anything was measured, and torch's own error where memory runs out.
    Whatever ends it, the next call with the same `checkpoint` goes on where it was saved last.
    """
    kept = checkpoint.load()
    if kept is not None and kept.progress.step == training.steps:
        on_step(training.steps)
        return _learned(training, kept)
    run = _Run(training, request, data, bench, plan, stop)
    if kept is not None:
        run.resume(kept)
    saved_at = time.monotonic()
    for step in range(run.progress.step, training.steps):
        if stop.requested or (step == 0 and not run.look()):
            break
        if not run.step(step):
            break
        is_due = (step + 1) % request.checkpoint_every == 0 or step + 1 == training.steps
        if is_due and not run.look():
            break
        if is_due or time.monotonic() - saved_at >= SAVE_EVERY_S:
            checkpoint.save(run.state())
            saved_at = time.monotonic()
        on_step(step + 1)
    state = run.state()
    if stop.requested:
        checkpoint.save(state)
    return _learned(training, state)


def _learned(training: ExpertTraining, state: State) -> Learned | None:
    if state.progress.step == 0:
        return None
    best = {name.partition(".")[2]: value for name, value in state.tensors.items() if name.startswith(f"{_BEST}.")}
    return Learned(training, state.progress, best)


class _Run:
    """An expert with its LoRA, optimizer and best so far."""

    def __init__(
        self,
        training: ExpertTraining,
        request: TrainingRequest,
        data: Encoded,
        bench: Bench,
        plan: TrainingPlan,
        stop: Stop,
    ) -> None:
        self.progress = Progress()
        self._training, self._request, self._data, self._bench, self._stop = training, request, data, bench, stop
        self._seed = int(timesteps.generator(request.seed, training.expert).initial_seed())
        self._expert = bench.expert(1 if training.expert == "low" else 0, fp8=plan.precision == "fp8")
        self._adapter = Adapter(self._expert, request.rank, request.alpha, seed=self._seed, dtype=bench.dtype)
        if plan.recomputed:
            recompute.apply(self._expert, on_host=plan.on_host)
        masters = self._adapter.masters
        self._optimizer = torch.optim.AdamW(masters, lr=training.learning_rate, betas=_BETAS, weight_decay=0.0)
        warm_up = min(_WARM_UP_STEPS, training.steps // 10 + 1)
        self._schedule = Schedule(training.learning_rate, warm_up, training.steps)
        self._best: dict[str, torch.Tensor] | None = None

    def resume(self, kept: State) -> None:
        self.progress = kept.progress
        names, tensors = self._adapter.names, kept.tensors
        self._adapter.restore({name: tensors[f"{_MASTER}.{name}"] for name in names})
        for name, master in zip(names, self._adapter.masters, strict=True):
            moments = {moment: tensors[f"{moment}.{name}"].to(master.device) for moment in _MOMENTS}
            self._optimizer.state[master] = {"step": torch.tensor(float(self.progress.step)), **moments}
        if self.progress.best_step is not None:
            self._best = {name: tensors[f"{_BEST}.{name}"] for name in names}

    def step(self, step: int) -> bool:
        """One optimizer step, on one clip; False where it diverged, and the best so far is all there is.

        Raises InvalidRequest where nothing was measured before.
        """
        random = timesteps.generator(self._seed, "step", step)
        example = self._data.clips[self._number(step)]
        dropped = float(torch.rand((), generator=random)) < self._request.caption_dropout
        noise = torch.randn(example.latents.shape, generator=random)
        along = timesteps.along(self._seed, step)
        loss = self._loss(example, self._data.unasked if dropped else example.text, noise, along)
        loss.backward()  # type: ignore[no-untyped-call]
        self._adapter.take_gradients()
        norm = descend(self._adapter.masters, [self._optimizer], self._schedule, step)
        if not math.isfinite(norm):
            if self._best is None:
                message = f"the training diverged at step {step + 1}, its gradients are no numbers: send a lower one"
                raise InvalidRequest(message, path="train.learning_rate")
            return False
        self._adapter.publish()
        self.progress.step = step + 1
        return True

    @torch.no_grad()
    def look(self) -> bool:
        """Measure the held-out loss and remember the best; False where the stop came before the end."""
        if not self._data.held_out:
            return True
        losses = []
        for number, example in enumerate(self._data.held_out[:_HELD_OUT_CLIPS]):
            for along in timesteps.held_out():
                if self._stop.requested:
                    return False
                random = timesteps.generator(self._seed, "held out", number, along)
                noise = torch.randn(example.latents.shape, generator=random)
                losses.append(float(self._loss(example, example.text, noise, along)))
        step, loss = self.progress.step, sum(losses) / len(losses)
        self.progress.losses[step] = loss
        best_loss = self.progress.best_loss
        if step > 0 and (best_loss is None or loss < best_loss):
            self.progress.best_step, self._best = step, self._adapter.weights()
        return True

    def state(self) -> State:
        """On the host; behind the last step the best factors alone. Until something is measured, they are the last."""
        best = self._adapter.weights() if self._best is None else self._best
        tensors = {f"{_BEST}.{name}": factor for name, factor in best.items()}
        if self.progress.step == self._training.steps:
            return State(self.progress, tensors)
        for name, master in zip(self._adapter.names, self._adapter.masters, strict=True):
            moments = self._optimizer.state.get(master, {})
            tensors[f"{_MASTER}.{name}"] = master.cpu()
            tensors |= {f"{moment}.{name}": moments.get(moment, torch.zeros_like(master)).cpu() for moment in _MOMENTS}
        return State(self.progress, tensors)

    def _number(self, step: int) -> int:
        """The clip of a step: every clip once in each round."""
        count = len(self._data.clips)
        order = torch.randperm(count, generator=timesteps.generator(self._seed, "order", step // count))
        return int(order[step % count])

    def _loss(self, example: Example, text: torch.Tensor, noise: torch.Tensor, along: float) -> torch.Tensor:
        """The mean squared error of the velocity, float32, at the share `along` of the expert's part."""
        device, dtype, spec = self._bench.device, self._bench.dtype, self._bench.spec
        sigma = timesteps.sigma(spec, self._training.expert, along)
        clean, noise = example.latents.to(device), noise.to(device)
        noisy = (1 - sigma) * clean + sigma * noise
        if example.condition is not None:
            noisy = torch.cat([noisy, example.condition.to(device)], 1)
        padded = functional.pad(text.to(device, dtype), (0, 0, 0, embeddings.MAX_TOKENS - len(text)))
        velocity = self._expert(
            hidden_states=noisy.to(dtype),
            timestep=self._timestep(clean, sigma),
            encoder_hidden_states=padded[None],
            return_dict=False,
        )[0]
        return functional.mse_loss(velocity.float(), noise - clean)

    def _timestep(self, clean: torch.Tensor, sigma: float) -> torch.Tensor:
        """[1], or [1, tokens] for the model that takes one for each token."""
        timestep = torch.tensor([1000.0 * sigma], device=clean.device)
        if self._bench.spec.boundary_ratio is not None:
            return timestep
        _, height, width = self._expert.config.patch_size
        tokens = clean.shape[2] * (clean.shape[3] // height) * (clean.shape[4] // width)
        return timestep.expand(1, tokens)
