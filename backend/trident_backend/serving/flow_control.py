"""Flow control of one stream whose chunks are acknowledged.

Owns what a stream's acknowledgements say. Pure: time is passed in, nothing is sent or stopped here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from trident_ensemble.acknowledgements import GONE
from trident_ensemble.contract.settings import CoreSettings


class FlowState(Enum):
    """What a stream's acknowledgements say of its reader."""

    FLOWING = auto()
    STALLED = auto()
    GONE = auto()


@dataclass
class FlowControl:
    """One chunk on its way at a time, so that no chunk can overtake another; times in seconds."""

    settings: CoreSettings
    num_sent: int = 0
    num_acknowledged: int = 0
    sent_at: float = 0.0

    @property
    def may_send(self) -> bool:
        """Whether nothing is on its way."""
        return self.num_acknowledged == self.num_sent

    def sent(self, now: float) -> None:
        """One more chunk has left."""
        assert self.may_send
        self.num_sent += 1
        self.sent_at = now

    def acknowledged(self, num_chunks: int) -> None:
        """Take note that the reader has had this many chunks in all, or is GONE; more than were sent say nothing."""
        if num_chunks <= self.num_sent or num_chunks == GONE:
            self.num_acknowledged = max(self.num_acknowledged, num_chunks)

    def state(self, now: float) -> FlowState:
        """What is known of the reader; a chunk that stays unacknowledged says as much as an acknowledgement."""
        if self.num_acknowledged == GONE:
            return FlowState.GONE
        waited_ms = 0 if self.may_send else (now - self.sent_at) * 1000
        if waited_ms >= self.settings.abandon_after_ms:
            return FlowState.GONE
        return FlowState.STALLED if waited_ms >= self.settings.pause_after_ms else FlowState.FLOWING
