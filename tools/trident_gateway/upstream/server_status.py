"""The state of one server, for those who only look.

Owns that value. Never finds anything out.
"""

from __future__ import annotations

from dataclasses import dataclass

from trident_gateway.upstream.sides import STABLE


@dataclass(frozen=True)
class ServerStatus:
    """The state of a server, as metrics show it.

    Args:
        server: its name, `HOST:PORT`.
        is_ready: it is in rotation.
        num_in_flight: calls that it has.
        num_ejections: how often it was taken out of rotation for failures.
        is_awaited: calls have waited for its next byte for some seconds.
        num_steps: that its engines have made; None where that was not heard lately.
        side: where it stands.
        is_well: it answers and says that it is ready, though it may hang.
    """

    server: str
    is_ready: bool
    num_in_flight: int
    num_ejections: int
    is_awaited: bool
    num_steps: float | None
    side: str = STABLE
    is_well: bool = True
