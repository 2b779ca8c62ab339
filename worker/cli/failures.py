"""How a command ends when it does not succeed."""

from __future__ import annotations

DONE = 0
FAILED = 1
USAGE = 2
CANCELLED = 130  # what a shell reports of a program that Ctrl-C ended


class CommandFailed(Exception):
    """Ends the command with `status`; the message says what happened and what to do about it."""

    def __init__(self, message: str, *, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


def usage(message: str) -> CommandFailed:
    """For what is wrong with the command itself: a flag's value, a file that is not there."""
    return CommandFailed(f"error: {message}", status=USAGE)
