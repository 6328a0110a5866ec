"""Whether the engines behind the gateway do anything while calls wait for them.

Owns the time since each engine was last seen to move. Never looks at how many requests wait or how long: a busy engine
is not a dead one, and neither a server that is down nor a client that does not read is the fault of an engine.
"""

from __future__ import annotations

from collections.abc import Sequence

from trident_gateway.upstream.server_status import ServerStatus

STUCK_AFTER_S = 60.0


class ProgressWatch:
    """The steps of engines, as they were last seen."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, float | None]] = {}
        #: Whether no server that says it is ready has made a step for a minute, while calls waited for each of them.
        self.is_stuck = False

    def look(self, now: float, servers: Sequence[ServerStatus]) -> None:
        """Take note of the present.

        Args:
            now: in seconds of any clock.
            servers: all of them; any change of a server's steps is progress, and so is that nobody waits for it, or
                that it does not answer that it is ready, or its steps are not known.
        """
        well = [server for server in servers if server.is_well]
        seen: dict[str, tuple[float, float | None]] = {}
        for server in well:
            moved_at, num_steps = self._seen.get(server.server, (now, None))
            is_still = server.is_awaited and server.num_steps is not None and server.num_steps == num_steps
            seen[server.server] = (moved_at if is_still else now, server.num_steps)
        self._seen = seen
        # Where one of several goes on, calls can go there, and a restart would only cut what it does.
        self.is_stuck = bool(seen) and all(now - moved_at >= STUCK_AFTER_S for moved_at, _ in seen.values())
