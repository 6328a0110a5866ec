"""The gateways whose metrics a rollout watches.

Owns which there are, the fetching of their pages, and the differences between two readings. Never judges them.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from trident_ensemble.contract.errors import ConfigError
from trident_tools.rollouts.figures import SideFigures, Window
from trident_tools.rollouts.pages import CANARY, STABLE, Page, parse_page

_TIMEOUT_S = 3.0
_MAX_PAGE_BYTES = 16 << 20
_MAX_AT_ONCE = 16


@dataclass(frozen=True)
class GatewaySource:
    """One gateway's private port, or that of all gateways behind a name.

    Args:
        host: address or name.
        port: the private one.
        is_name: each address of the name in DNS is a gateway, looked up at each reading.
        side: whose requests all of its are; None if its page tells sides apart.
    """

    host: str
    port: int
    is_name: bool = False
    side: str | None = None

    def addresses(self) -> list[tuple[str, int]]:
        """Return the addresses of all its gateways.

        Raises:
            OSError: the name cannot be looked up.
        """
        if not self.is_name:
            return [(self.host, self.port)]
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        return sorted({(str(entry[4][0]), self.port) for entry in found})


@dataclass(frozen=True)
class Look:
    """The pages of all gateways at one moment, put together.

    Args:
        weights: of the canary, as they show them; None if not all of them could be read, NaN where one shows none.
        has_ready_canary: every gateway has a server of the canary in rotation.
        counted: since the last look in which all could be read.
        problems: what could not be read, and why.
    """

    weights: frozenset[float] | None
    has_ready_canary: bool
    counted: Window
    problems: tuple[str, ...] = ()


class Gateways:
    """All gateways of a rollout.

    Args:
        sources: where they are.
    """

    def __init__(self, sources: Sequence[GatewaySource]) -> None:
        self._sources = sources
        self._models: Collection[str] | None = None
        self._before: dict[tuple[str, int], Page] = {}
        self._pool = ThreadPoolExecutor(_MAX_AT_ONCE)

    def close(self) -> None:
        """Let go of the threads that read pages."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def count_models(self, models: Collection[str]) -> None:
        """Count the requests of these models alone from the next look on."""
        self._models = models
        self._before = {}

    def look(self) -> Look:
        """Read all pages at the same time, and return what has changed since the last look."""
        problems: list[str] = []
        sides: dict[tuple[str, int], str | None] = {}
        for source in self._sources:
            try:
                sides.update(dict.fromkeys(source.addresses(), source.side))
            except OSError as error:
                problems.append(f"{source.host}: cannot be looked up: {error}")
        pages: dict[tuple[str, int], Page] = {}
        for address, page in zip(sides, self._pool.map(self._read, sides), strict=True):
            if isinstance(page, Page):
                pages[address] = page
            else:
                problems.append(page)
        if problems or not pages:
            return Look(None, has_ready_canary=True, counted=Window(), problems=tuple(problems))
        counted = sum((self._counted(address, page, sides[address]) for address, page in pages.items()), Window())
        self._before = pages
        return Look(
            frozenset(float("nan") if page.weight is None else page.weight for page in pages.values()),
            _has_ready_canary([(page, sides[address]) for address, page in pages.items()]),
            counted,
        )

    def _read(self, address: tuple[str, int]) -> Page | str:
        """Return the page of a gateway, or why there is none."""
        host, port = address
        connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", "/metrics")
            reply = connection.getresponse()
            if reply.status != http.client.OK:
                return f"{host}:{port}: answers {reply.status}"
            return parse_page(reply.read(_MAX_PAGE_BYTES).decode("utf-8", "replace"), self._models)
        except (OSError, http.client.HTTPException, ValueError) as error:
            return f"{host}:{port}: {error or type(error).__name__}"
        finally:
            connection.close()

    def _counted(self, address: tuple[str, int], page: Page, side: str | None) -> Window:
        """Return what a gateway has counted since the last look; nothing for one that is new."""
        before = self._before.get(address)
        if before is None:
            return Window()
        parts = {name: figures.since(before.figures[name]) for name, figures in page.figures.items()}
        if side is None:
            return Window(parts[STABLE], parts[CANARY])
        whole = sum(parts.values(), SideFigures())
        if side == STABLE:
            return Window(stable=whole)
        # A gateway of the canary starts anew with its pod.
        num_restarts = any(figures.has_restarted(before.figures[name]) for name, figures in page.figures.items())
        return Window(canary=whole + SideFigures(ejections=float(num_restarts)))


def _has_ready_canary(pages: Sequence[tuple[Page, str | None]]) -> bool:
    num_ready = [
        page.num_ready[CANARY] if side is None else sum(page.num_ready.values())
        for page, side in pages
        if side != STABLE
    ]
    return all(number > 0 for number in num_ready)


def gateway_source(option: str, url: str, *, is_name: bool = False, side: str | None = None) -> GatewaySource:
    """Return the gateway, or the gateways, of a URL.

    Raises:
        ConfigError: it is not one of a private port; names the option.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port or parts.scheme != "http" or parts.path.rstrip("/") or parts.query or parts.username:
        raise ConfigError(f"{option} {url}: must be a gateway's private port, such as http://127.0.0.1:8081")
    return GatewaySource(host, port, is_name, side)
