"""How much of a text may leave before it is known what follows.

Owns this one question. Never keeps a text.
"""

from __future__ import annotations

_BLANKS = " \n\r\t"


def certain_length(text: str, marker: str | None) -> int:
    """Return how many characters are certainly before a marker, and before the white space that belongs to it.

    Args:
        text: what has come.
        marker: the text that may follow, of which the end of `text` may be the beginning; None if it is a token.
    """
    lengths = range(min(len(marker) - 1, len(text)), 0, -1) if marker else ()
    held = next((length for length in lengths if marker and text.endswith(marker[:length])), 0)
    return len(text[: len(text) - held].rstrip(_BLANKS))
