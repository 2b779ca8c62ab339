"""The one guarded door to addresses that a request names: resolved once, judged, and connected to that address."""

from worker.net.opener import Limits, Opener, PostAnswer, PostFailed

__all__ = ["Limits", "Opener", "PostAnswer", "PostFailed"]
