"""A tiny UMT5 and its tokenizer: every token of a caption learns to tell what the whole caption asks for.

The encoder is trained on captions alone, as a reader: from each token's vector, linear heads tell colour, shape,
ground, motion, light and camera. Cross-attention then finds the whole request wherever it looks, which a small expert
learns quickly. The heads are thrown away. Prompts without a request (the official negative prompt, nothing, noise) are
taught to tell nothing, so that they serve as the unconditional side of guidance.
"""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from training import scenes
from training.running import Run
from worker.request.catalogue import OFFICIAL_NEGATIVE_PROMPT
from worker.request.prompt_words import CAMERA_MOTIONS
from worker.training.loop import Schedule, descend

TEXT_DIM = 64
# Words that callers use and the grammar does not: they must not disturb.
_PLAIN = """a an the of and with from by at into through in on to over under near while quickly softly
    beautiful bright dark tiny large glowing video clip scene showing shows there is one lonely across frame
    screen view camera"""
PLAIN_WORDS = tuple(_PLAIN.split())
_UNASKED_SHARE, _SLOW_SHARE = 0.08, 0.3
# What each token has to say of the scene.
_FACTORS: Mapping[str, tuple[str | bool, ...]] = {**scenes.FACTORS, "slow": (False, True)}


@dataclass(frozen=True, slots=True)
class TextPlan:
    steps: int = 1500
    batch: int = 48
    # Captions from which the tokenizer's words and their frequencies come.
    corpus: int = 20_000
    learning_rate: float = 3e-3


def tokenizer(seed: int, corpus: int) -> T5Tokenizer:
    """A Unigram tokenizer of Wan's class: the words of the captions by frequency, and single signs for all others."""
    random = np.random.default_rng(seed)
    counts: Counter[str] = Counter()
    for _ in range(corpus):
        text = scenes.caption(scenes.draw(random, held_out=False), random)
        counts.update(word.strip(".,") for word in text.split())
    extra = " ".join([*scenes.words(), *CAMERA_MOTIONS.values(), *PLAIN_WORDS]).replace(",", " ").split()
    counts.update([word for plain in extra for word in (plain, plain.capitalize())])
    total = sum(counts.values())
    letters = [sign for sign in string.printable if not sign.isspace()]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -40.0), ("▁", -8.0)]
    vocabulary += [(sign, -15.0) for sign in letters] + [(f"▁{sign}", -15.0) for sign in letters]
    known = {piece for piece, _ in vocabulary}
    words = [(f"▁{word}", round(math.log(count / total), 4)) for word, count in sorted(counts.items())]
    vocabulary += [(piece, score) for piece, score in words if piece not in known]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)


def encoder(vocab_size: int) -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=vocab_size, d_model=TEXT_DIM, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    return UMT5EncoderModel(config)


def train(run: Run, plan: TextPlan) -> tuple[T5Tokenizer, UMT5EncoderModel]:
    torch.manual_seed(run.seed)
    random = np.random.default_rng(run.seed)
    words = tokenizer(run.seed, plan.corpus)
    model = encoder(len(words)).train()
    heads = torch.nn.ModuleDict({name: torch.nn.Linear(TEXT_DIM, len(ways)) for name, ways in _FACTORS.items()})
    both = torch.nn.ModuleDict({"model": model, "heads": heads})
    optimizer = torch.optim.AdamW(both.parameters(), lr=plan.learning_rate, weight_decay=0.01)
    schedule = Schedule(plan.learning_rate, warm_up=50, steps=plan.steps)
    for step in run.steps(plan.steps, {"both": both, "optimizer": optimizer}):
        drawn = [
            scenes.paced(scenes.draw(random, held_out=False), random, share=_SLOW_SHARE) for _ in range(plan.batch)
        ]
        asked = [bool(random.random() >= _UNASKED_SHARE) for _ in drawn]
        texts = [
            disturbed(scenes.caption(scene, random), random) if is_asked else unasked(random)
            for scene, is_asked in zip(drawn, asked, strict=True)
        ]
        loss, right = _loss(words, model, heads, texts, drawn, asked)
        loss.backward()
        descend(both.parameters(), [optimizer], schedule, step, along=run.along)
        run.report(step, loss=float(loss.detach()), right=right)
    return words, model.eval()


def unasked(random: np.random.Generator) -> str:
    """A prompt that asks for nothing: mostly the official negative one."""
    share = random.random()
    if share < 0.6:
        return OFFICIAL_NEGATIVE_PROMPT
    if share < 0.8:
        return ""
    return "".join(random.choice(list(string.ascii_lowercase + "     "), int(random.integers(3, 40))))


def disturbed(text: str, random: np.random.Generator) -> str:
    """The caption with some words of no meaning between its own."""
    if random.random() < 0.6:
        return text
    words = text.split()
    for _ in range(int(random.integers(1, 4))):
        words.insert(int(random.integers(len(words) + 1)), str(random.choice(list(PLAIN_WORDS))))
    return " ".join(words)


def _loss(
    words: T5Tokenizer,
    model: UMT5EncoderModel,
    heads: torch.nn.ModuleDict,
    texts: Sequence[str],
    drawn: Sequence[scenes.Scene],
    asked: Sequence[bool],
) -> tuple[torch.Tensor, float]:
    """The loss over all tokens and factors, and the share of captions whose last token says every factor."""
    read = words(list(texts), padding=True, truncation=True, return_tensors="pt")
    mask = read.attention_mask.float()
    states = model(read.input_ids, read.attention_mask).last_hidden_state
    is_asked = torch.tensor(asked)
    last = read.attention_mask.sum(1) - 1
    loss, right = torch.zeros(()), torch.ones(len(texts), dtype=torch.bool)
    for name, ways in _FACTORS.items():
        wanted = torch.tensor([ways.index(getattr(scene, name)) for scene in drawn])
        target = torch.nn.functional.one_hot(wanted, len(ways)).float()
        target = torch.where(is_asked[:, None], target, torch.full_like(target, 1 / len(ways)))
        logits = heads[name](states)
        surprise = -(target[:, None] * logits.log_softmax(-1)).sum(-1)
        loss = loss + (surprise * mask).sum() / mask.sum()
        right &= logits[torch.arange(len(texts)), last].argmax(-1) == wanted
    return loss, float(right[is_asked].float().mean())


@torch.no_grad()
def embeddings(words: T5Tokenizer, model: UMT5EncoderModel, texts: Sequence[str]) -> list[torch.Tensor]:
    """One [tokens, TEXT_DIM] for each text, without padding."""
    found = []
    for start in range(0, len(texts), 64):
        read = words(list(texts[start : start + 64]), padding=True, truncation=True, return_tensors="pt")
        states = model(read.input_ids, read.attention_mask).last_hidden_state
        found += [row[: int(mask.sum())].clone() for row, mask in zip(states, read.attention_mask, strict=True)]
    return found


def save(words: T5Tokenizer, model: UMT5EncoderModel, folder: Path) -> None:
    words.save_pretrained(str(folder / "tokenizer"))
    model.to(torch.float16).save_pretrained(str(folder / "text_encoder"))  # type: ignore[arg-type]
    model.to(torch.float32)  # type: ignore[arg-type]
