"""What the engine's loop and those around it tell one another.

Owns the commands that reach a sequence in the core, and the events that come of a step. Never a thread.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

from trident_backend.sequences.sequence import FinishReason
from trident_ensemble.contract.errors import TridentError


class Command(Enum):
    """What may be asked of a sequence in the core."""

    ADD = auto()
    #: Nobody wants it any more.
    ABORT = auto()
    #: No more of it is wanted; what there is, is.
    STOP = auto()
    PAUSE = auto()
    RESUME = auto()


class TokenEvent(NamedTuple):
    """What happened to one sequence: new tokens, its end, or both.

    Args:
        sequence_id: whose.
        token_ids: the new ones.
        finish_reason: why it ended, if it did.
        error: the failure that ended it, if one did.
        num_safe_tokens: how many of its tokens may leave, see `StopStrings`; None if all may.
    """

    sequence_id: int
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    error: TridentError | None = None
    num_safe_tokens: int | None = None
