"""`python -m videogen_client.serve`: `/v1/videos`, as OpenAI's clients speak it, in front of an endpoint."""

from .backend import Backend

__all__ = ["Backend"]
