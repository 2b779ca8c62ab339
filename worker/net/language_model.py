"""The operator's language model, behind any OpenAI-compatible chat endpoint (`PROMPT_EXPANSION_URL`).

The address is the operator's own, so that it is not judged as those of requests are.
"""

from __future__ import annotations

import asyncio
import base64
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from worker.base.settings import Settings

if TYPE_CHECKING:
    from openai import AsyncOpenAI

PATIENCE_S = 10.0
MAX_TOKENS = 800
_POLL_S = 0.1


class Unanswered(Exception):
    """No answer that can be used; the message says why, without address, key or prompt."""


@dataclass(frozen=True, slots=True)
class LanguageModel:
    url: str
    model: str
    api_key: str
    patience_s: float = PATIENCE_S

    @classmethod
    def from_settings(cls, settings: Settings) -> LanguageModel | None:
        """None where the settings name none."""
        url, model, key = (
            settings.prompt_expansion_url,
            settings.prompt_expansion_model,
            settings.prompt_expansion_api_key,
        )
        if url is None or model is None:
            return None
        return cls(url, model, "none" if key is None else key.get_secret_value())

    def ask(self, system: str, user: str, *, picture: bytes | None, stop: threading.Event) -> str:
        """The answer to one question, within `patience_s` in all. `picture` is a JPEG, left out where it is refused.

        Blocks. Raises Unanswered, also where `stop` is set.
        """
        return asyncio.run(self._ask(system, user, picture, stop))

    async def _ask(self, system: str, user: str, picture: bytes | None, stop: threading.Event) -> str:
        # Imported for those who use it: it takes half a second.
        from openai import AsyncOpenAI, OpenAIError

        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.patience_s
        async with AsyncOpenAI(
            base_url=self.url, api_key=self.api_key, max_retries=0, timeout=self.patience_s
        ) as client:
            asking = asyncio.ensure_future(self._complete(client, system, user, picture))
            try:
                while not asking.done():
                    if stop.is_set() or loop.time() > deadline:
                        raise Unanswered("stopped" if stop.is_set() else f"no answer within {self.patience_s:g} s")
                    await asyncio.wait({asking}, timeout=_POLL_S)
                return asking.result()
            except (OpenAIError, ValueError, TypeError, AttributeError, LookupError) as failure:
                # Some servers answer what is no completion; the client then fails where its parts are read.
                raise Unanswered(type(failure).__name__) from failure
            finally:
                asking.cancel()

    async def _complete(self, client: AsyncOpenAI, system: str, user: str, picture: bytes | None) -> str:
        from openai import BadRequestError, NotFoundError, UnprocessableEntityError

        text: list[Any] = [{"type": "text", "text": user}]
        if picture is not None:
            shown = {"url": "data:image/jpeg;base64," + base64.b64encode(picture).decode("ascii"), "detail": "low"}
            try:
                return await self._send(client, system, [*text, {"type": "image_url", "image_url": shown}])
            except (BadRequestError, NotFoundError, UnprocessableEntityError):
                pass  # the model takes no pictures
        return await self._send(client, system, user)

    async def _send(self, client: AsyncOpenAI, system: str, user: Any) -> str:
        completion = await client.chat.completions.create(
            model=self.model,
            messages=[{"role": "system", "content": system}, {"role": "user", "content": user}],
            max_completion_tokens=MAX_TOKENS,
        )
        content = completion.choices[0].message.content
        if not isinstance(content, str):
            raise Unanswered("an answer without text")
        return content
