"""Text from a file, made safe for a message or a terminal."""

from __future__ import annotations

from typing import Any


def quoted(value: Any) -> str:
    """A value from the file for a message: short, printable, and containers only by their type."""
    if isinstance(value, (str, bytes)):
        return ascii(value) if len(value) <= 80 else ascii(value[:77]) + "..."
    if isinstance(value, (int, float)):
        return repr(value)  # `unpickler.py` refuses integers that are too long to be written out
    return f"a {type(value).__name__}"


def printable(text: str) -> str:
    """Text from a file, such as a label in any script, with control characters escaped.

    Unescaped, they could move the cursor, recolor the terminal or reverse the text.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
