"""Text that came from elsewhere, made fit for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` with `?` for each character that a terminal could take for a command. Ends of lines stay."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "?" for sign in text)
