"""What the engine's loop and the threads around it tell one another.

Owns the commands that reach a sequence in the core, and the events that come of a step. Never a thread.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

from trident_backend.sequences.sequence import FinishReason
from trident_ensemble.contract.errors import TridentError


class Command(Enum):
    """Commands that other threads send to the engine loop, each about one sequence."""

    ADD = auto()
    #: End it with an error: its client is gone.
    ABORT = auto()
    #: End it, and keep what it has generated.
    STOP = auto()
    #: Give it no further steps for now.
    PAUSE = auto()
    RESUME = auto()


class TokenEvent(NamedTuple):
    """The news of one sequence from a step: new tokens, its end, or both.

    Args:
        sequence_id: the sequence.
        num_tokens: how many tokens have been appended to the sequence's `token_ids` since its last event.
        finish_reason: why it ended; None if it goes on.
        error: the failure that ended it, if one did.
        num_safe_tokens: how many tokens of the whole output may leave (see `StopStrings`); None if all may.
    """

    sequence_id: int
    num_tokens: int
    finish_reason: FinishReason | None
    error: TridentError | None = None
    num_safe_tokens: int | None = None
