"""Flow control of one stream whose chunks are acknowledged.

Owns the arithmetic of sent and acknowledged chunks. Pure: time is passed in, nothing is sent or stopped here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from trident_ensemble.settings import CoreSettings


class FlowState(Enum):
    """What a stream's acknowledgements say of its reader."""

    FLOWING = auto()
    STALLED = auto()
    ABANDONED = auto()


@dataclass
class FlowControl:
    """How far a stream has run ahead of its acknowledgements; times in seconds."""

    settings: CoreSettings
    num_sent: int = 0
    num_acknowledged: int = 0
    waiting_since: float = 0.0

    @property
    def num_unacknowledged(self) -> int:
        """Chunks on their way."""
        return self.num_sent - self.num_acknowledged

    @property
    def may_send(self) -> bool:
        """Whether another chunk may leave."""
        return self.num_unacknowledged < self.settings.max_unacknowledged_chunks

    def sent(self, now: float) -> None:
        """One more chunk has left."""
        if self.num_unacknowledged == 0:
            self.waiting_since = now
        self.num_sent += 1

    def acknowledged(self, num_chunks: int, now: float) -> None:
        """The reader has had this many chunks in all."""
        if num_chunks > self.num_acknowledged:
            self.num_acknowledged = num_chunks
            self.waiting_since = now

    def state(self, now: float) -> FlowState:
        """FLOWING, unless the oldest unacknowledged chunk has waited too long."""
        waited_ms = (now - self.waiting_since) * 1000 if self.num_unacknowledged else 0
        if waited_ms >= self.settings.abandon_after_ms:
            return FlowState.ABANDONED
        return FlowState.STALLED if waited_ms >= self.settings.pause_after_ms else FlowState.FLOWING
