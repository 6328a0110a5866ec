"""Finds stop strings in the text of one growing output.

Owns what has been decoded of it and how much of it may leave. Pure. Never ends a sequence: that is the scheduler's.
"""

from __future__ import annotations

from typing import Protocol


class StopStrings(Protocol):
    """Sees every token of the output, in order."""

    @property
    def num_safe_tokens(self) -> int:
        """How many tokens of the output may leave: what follows them may be the beginning of a stop string."""
        ...

    @property
    def num_characters(self) -> int:
        """Where the text ends, in characters, once a stop string was found."""
        ...

    def append(self, token_id: int) -> str | None:
        """Take the next token; the stop string that is complete now, if one is."""
        ...

    def finish(self) -> str | None:
        """No token comes any more; the stop string that was in what had been held back, if one was."""
        ...

    def text_end(self, num_tokens: int) -> int:
        """How many characters of text postprocessing has emitted when it was sent this many tokens of the output."""
        ...
