"""Teaches the shipped text encoder to say that something is slow.

    python -m training.pace [--steps 600] [--out FOLDER]    # 0 steps: measures alone

It was trained to pass over "slowly" like any word without meaning, so no expert could read it. Here it learns from
itself: a caption of a slow scene is read as before, but moved by one constant vector, and every other caption as
before. What the experts know of all else stays; what the vector means they learn next (`training.train_further`).
"""

from __future__ import annotations

import argparse
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoTokenizer, T5Tokenizer, UMT5EncoderModel

from training import scenes, text
from training.further import WEIGHTS
from training.running import Run
from worker.training.loop import Schedule, descend

# Of the length of a state: half.
LENGTH = 8.0
_SLOW_SHARE, _UNASKED_EVERY = 0.7, 6
_BATCH = 48
_LEARNING_RATE = 2e-3
_SEED = 24


def direction() -> torch.Tensor:
    """By what the states of a slow caption are moved, [TEXT_DIM]."""
    drawn = torch.randn(text.TEXT_DIM, generator=torch.Generator().manual_seed(_SEED))
    return LENGTH * drawn / drawn.norm()


def _caption(random: np.random.Generator) -> tuple[str, bool]:
    """A caption, and whether it is that of a slow scene."""
    scene = scenes.paced(scenes.draw(random, held_out=False, camera=0.2), random, share=_SLOW_SHARE)
    return text.disturbed(scenes.caption(scene, random), random), scene.slow


def teach(run: Run, steps: int, words: T5Tokenizer, model: UMT5EncoderModel, before: UMT5EncoderModel) -> None:
    """Train `model` beside `before`, which has the weights that it began with."""
    random = np.random.default_rng(run.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=0.0)
    schedule = Schedule(_LEARNING_RATE, warm_up=30, steps=steps)
    moved = direction()
    for step in run.steps(steps, {"model": model, "optimizer": optimizer}):
        if step % _UNASKED_EVERY:
            drawn = [_caption(random) for _ in range(_BATCH)]
        else:  # long ones
            drawn = [(text.unasked(random), False) for _ in range(_BATCH // 12)]
        read = words([caption for caption, _ in drawn], padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            wanted = before(read.input_ids, read.attention_mask).last_hidden_state
        wanted = wanted + torch.tensor([slow for _, slow in drawn])[:, None, None] * moved
        states = model(read.input_ids, read.attention_mask).last_hidden_state
        loss = functional.mse_loss(states[read.attention_mask.bool()], wanted[read.attention_mask.bool()])
        loss.backward()
        descend(model.parameters(), [optimizer], schedule, step, along=run.along)
        run.report(step, loss=float(loss.detach()))


def apart(words: T5Tokenizer, model: UMT5EncoderModel) -> dict[str, float]:
    """How far a caption's last state is from that of the same caption when slow, and when it goes the other way."""
    found: dict[str, list[float]] = {"length": [], "slow": [], "other_way": []}
    random = np.random.default_rng(_SEED)
    for number in range(_BATCH):
        scene = replace(scenes.draw(random, held_out=True, camera=0), motion="left", slow=True)
        slowly, other_way = (
            scenes.sentence(each, np.random.default_rng(number)) for each in (scene, replace(scene, motion="right"))
        )
        texts = [re.sub(r" (very )?(slowly|gently)", "", slowly), slowly, other_way]
        plain, slow, other = (states[-1] for states in text.embeddings(words, model, texts))
        for name, vector in (("length", plain), ("slow", slow - plain), ("other_way", other - slow)):
            found[name].append(float(vector.norm()))
    return {name: round(float(np.median(values)), 1) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=WEIGHTS / "text_encoder")
    chosen = parser.parse_args()
    torch.manual_seed(_SEED)
    words: Any = AutoTokenizer.from_pretrained(WEIGHTS / "tokenizer")
    model, before = (UMT5EncoderModel.from_pretrained(WEIGHTS / "text_encoder", dtype=torch.float32) for _ in range(2))
    print("before", apart(words, before.eval()))
    if not chosen.steps:
        return
    with tempfile.TemporaryDirectory() as folder:
        run = Run("pace", Path(folder), seed=_SEED)
        teach(run, chosen.steps, words, model.train(), before)
    print("after", apart(words, model.eval()))
    model.to(torch.float16).save_pretrained(str(chosen.out))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
