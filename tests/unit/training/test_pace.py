"""The text encoder of the demo model says that something is slow, and reads the rest as before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, UMT5EncoderModel

from training import pace, text
from training.further import WEIGHTS
from training.running import Run


@pytest.mark.slow
def test_slow_captions_are_moved_and_others_stay(tmp_path: Path) -> None:
    words = AutoTokenizer.from_pretrained(WEIGHTS / "tokenizer")
    model, before = (
        UMT5EncoderModel.from_pretrained(WEIGHTS / "text_encoder", dtype=torch.float32).eval() for _ in range(2)
    )
    pace.teach(Run("pace", tmp_path), 25, words, model, before)

    def moved(caption: str) -> float:
        (own,), (old,) = (text.embeddings(words, each, [caption]) for each in (model, before))
        return float(((own - old) @ pace.direction()).mean()) / pace.LENGTH

    slow, plain = moved("A red ball slowly moves left over rippling water"), moved("A red ball moves left over water")
    assert slow > plain + 0.05
