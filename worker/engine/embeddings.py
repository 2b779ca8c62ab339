"""Text embeddings, remembered: the negative prompt is the same in almost every job, and many prompts are sent again.

So a warm worker often does not need the text encoder, which saves time where it would have to move to the device.
"""

from __future__ import annotations

from collections import OrderedDict

import torch

from worker.base import metrics
from worker.engine.models.pool import Loaded
from worker.engine.modes.base import TextPipeline

# UMT5 reads this many tokens, in Wan's own code and in Diffusers'; the rest is cut.
MAX_TOKENS = 512
# 4 MB each for the A14B models.
_REMEMBERED = 64
# So many are encoded ahead, so that none of them evicts one that is in use.
AHEAD = 32


class TextEmbeddings:
    """Not thread-safe: the engine calls it under its lock."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype
        self._known: OrderedDict[tuple[object, ...], torch.Tensor] = OrderedDict()

    def embeds(self, loaded: Loaded, text: str) -> torch.Tensor:
        """Embeddings of `text`, [1, 512, text_dim] on the device in the experts' dtype; padding is zero."""
        key = (loaded.spec.name, loaded.spec.extent, text)
        metrics.cache("text", hit=key in self._known)
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        loaded.residency.bring(loaded.components.shared.text_encoder)
        pipeline = TextPipeline(**loaded.components.for_pipeline(None))
        embeds: torch.Tensor = pipeline.encode_prompt(
            text,
            do_classifier_free_guidance=False,
            max_sequence_length=MAX_TOKENS,
            device=self._device,
            dtype=self._dtype,
        )[0]
        self._known[key] = embeds
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return embeds


def count_tokens(loaded: Loaded, text: str) -> int:
    """Tokens of `text`, the end token included, before anything is cut."""
    return len(loaded.components.shared.tokenizer(text).input_ids)
