"""`prompt_expansion`: the prompt rewritten by the operator's language model, or else by `enhance_prompt`'s rules."""

from __future__ import annotations

import io
import logging
import threading
from dataclasses import replace

from PIL.Image import Image

from worker.base.errors import Unsupported
from worker.net.language_model import LanguageModel, Unanswered
from worker.request import VideoRequest, expansion

logger = logging.getLogger(__name__)
PICTURE_SIDE = 512


def check(request: VideoRequest, model: LanguageModel | None) -> None:
    """Raise Unsupported where the request asks for what is not configured."""
    if request.prompt_expansion and model is None:
        raise Unsupported(
            "this worker has no language model (PROMPT_EXPANSION_URL and PROMPT_EXPANSION_MODEL): leave it out",
            path=request.at("prompt_expansion"),
        )


def expanded(
    request: VideoRequest, picture: Image | None, model: LanguageModel | None, stop: threading.Event
) -> VideoRequest:
    """The request with its prompt rewritten, where it asks for that. Blocks up to the model's patience.

    `picture` is the reference image. Without a usable answer the request comes back as it is, with a warning.
    """
    check(request, model)
    if not request.prompt_expansion or model is None:
        return request
    shown = None
    if picture is not None:
        small = picture.copy()
        small.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        stream = io.BytesIO()
        small.save(stream, "JPEG")
        shown = stream.getvalue()
    system = expansion.instructions(from_picture=picture is not None)
    try:
        answer = model.ask(system, expansion.question(request.prompt), picture=shown, stop=stop)
        return replace(request, prompt=expansion.checked(answer, request.prompt), enhance_prompt=False)
    except (Unanswered, ValueError) as failure:
        logger.warning("video %d: the language model's answer was not used: %s", request.index, failure)
        note = f"{request.at('prompt_expansion')}: the language model gave no usable answer, so the prompt stands"
        return replace(request, warnings=(*request.warnings, note))
