"""Requests that a browser sends because a page told it to.

Owns by which headers they are known. What protects a port that asks for no key is that only this machine, or the
operators' network, reaches it; a browser there takes any page past that. Never looks at a path.
"""

from __future__ import annotations

from collections.abc import Iterable

from trident_gateway.errors import ForeignOriginError
from trident_gateway.settings import is_loopback

Headers = Iterable[tuple[bytes, bytes]]


def check_no_page(headers: Headers) -> None:
    """Refuse what a page has sent: browsers say where a request comes from, operators' tools have no reason to.

    Raises:
        ForeignOriginError: the request has an origin, or comes from another site.
    """
    for name, value in headers:
        if name == b"origin" or (name == b"sec-fetch-site" and value not in (b"none", b"same-origin")):
            raise ForeignOriginError("This port takes no requests of web pages.")


def check_host_is_here(headers: Headers) -> None:
    """Refuse a request for another host: a page whose name leads to this machine could read the answers.

    Raises:
        ForeignOriginError: `Host` is a name or an address of another machine.
    """
    for name, value in headers:
        if name == b"host" and not _is_here(value.decode("latin-1")):
            raise ForeignOriginError(
                "Without keys this gateway answers requests to this machine alone: send them to localhost or 127.0.0.1 "
                "(header `Host`), or start it with keys."
            )


def _is_here(authority: str) -> bool:
    host, colon, port = authority.rpartition(":")
    if not colon or not port.isdigit():
        host = authority
    host = host.removeprefix("[").removesuffix("]").removesuffix(".").lower()
    return is_loopback(host) or host.endswith(".localhost")
