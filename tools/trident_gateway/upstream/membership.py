"""Which servers are behind the gateway now, and on which side each stands.

Owns how the command line, a name in DNS and the routes file are put together. Never knows whether a server is well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trident_ensemble.contract.errors import ConfigError
from trident_ensemble.contract.routes import Routes, Side, parse_routes
from trident_gateway.settings import ServerAddress, ServerName
from trident_gateway.upstream.dns import DnsServers, Resolve
from trident_gateway.upstream.watch_times import WatchTimes
from trident_gateway.watched_file import WatchedFile

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Roster:
    """All servers, each on one side.

    Args:
        stable: those of the stable side.
        canary: those of the canary.
        weight: percent of callers whose requests go to the canary.
    """

    stable: tuple[ServerAddress, ...] = ()
    canary: tuple[ServerAddress, ...] = ()
    weight: float = 0.0


class Membership:
    """The sources that say which servers there are, as they were last understood.

    Args:
        servers: those of the command line.
        server_dns: a name whose addresses are further ones; None for none.
        routes_file: may name others in their place, and a canary; None for no such file.
        on_change: told each new roster.
        resolve: looks names up.
        times: between two looks at the file, and at the name.

    Raises:
        ConfigError: the routes file cannot be read or understood.
    """

    def __init__(
        self,
        servers: Sequence[ServerAddress],
        *,
        server_dns: ServerName | None,
        routes_file: Path | None,
        on_change: Callable[[Roster], None],
        resolve: Resolve,
        times: WatchTimes,
    ) -> None:
        self._servers = tuple(servers)
        self._on_change = on_change
        self._told: Roster | None = None
        self._dns = None if server_dns is None else DnsServers(server_dns, self._tell, resolve, times.dns_s)
        self._routes = (
            None
            if routes_file is None
            else WatchedFile(
                routes_file, "The routes file", read_routes, on_change=self._tell, interval_s=times.routes_s
            )
        )

    @property
    def num_routes_failures(self) -> int:
        """How often the routes file had changed and could not be understood."""
        return 0 if self._routes is None else self._routes.num_failures

    @property
    def num_dns_failures(self) -> int:
        """How often the name could not be looked up."""
        return 0 if self._dns is None else self._dns.num_failures

    async def start(self) -> None:
        """Look the name up once, tell the roster, and begin to look for changes."""
        for source in (self._dns, self._routes):
            if source is not None:
                await source.start()
        self._tell()

    async def close(self) -> None:
        """Stop looking."""
        for source in (self._dns, self._routes):
            if source is not None:
                await source.close()

    def _tell(self) -> None:
        roster = self._roster()
        if roster != self._told:
            before, self._told = self._told, roster
            if before is not None and before.weight != roster.weight:
                _log.info("the canary has %g %% of callers", roster.weight)
            self._on_change(roster)

    def _roster(self) -> Roster:
        routes = Routes() if self._routes is None else self._routes.value
        canary = _addresses(routes.canary)
        if routes.stable is not None:
            stable = _addresses(routes.stable)
        else:
            stable = self._servers + (() if self._dns is None else self._dns.servers)
        # Where a canary's servers have the name in DNS, too, they still are the canary's alone.
        taken = {server.url for server in canary}
        kept = {server.url: server for server in stable if server.url not in taken}
        return Roster(tuple(kept.values()), canary, routes.weight)


def read_routes(path: Path) -> Routes:
    """Return the routes of a file.

    Raises:
        ConfigError: it cannot be read or understood.
    """
    try:
        return parse_routes(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--routes {path}: cannot be read: {error.strerror}") from None
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(f"--routes {path}: {error}") from None


def _addresses(side: Side | None) -> tuple[ServerAddress, ...]:
    return () if side is None else tuple(ServerAddress(server.url, server.metrics_url) for server in side.servers)
