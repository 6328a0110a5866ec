"""The times by which the gateway watches servers, and what says which servers there are.

Owns these numbers. Never watches anything.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WatchTimes:
    """The times by which servers are watched, all in seconds.

    Args:
        probe_s: between two looks at a server, its health and its figures.
        probe_down_s: the same for one that has just failed or is down.
        models_s: between two readings of its models.
        timeout_s: for the answer to a probe. Three that are not answered are noticed within 15 s.
        stale_s: after which figures are not believed any more.
        hung_s: after which a server is not ready whose engines make no step while calls wait for it.
        trial_s: after which one that nobody waits for is let have a call again.
        silence_s: after which calls to a server that has sent nothing at all are given up.
        routes_s: between two looks at the routes file.
        dns_s: between two looks at the name of the servers.
        handover_s: for which servers without a place stay while none that takes it has said what it serves.
    """

    probe_s: float = 1.0
    probe_down_s: float = 0.25
    models_s: float = 5.0
    timeout_s: float = 4.0
    stale_s: float = 5.0
    hung_s: float = 10.0
    trial_s: float = 30.0
    silence_s: float = 30.0
    routes_s: float = 2.0
    dns_s: float = 5.0
    handover_s: float = 30.0
