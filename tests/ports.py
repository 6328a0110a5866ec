"""Ports for the servers that tests start.

Owns the choice. Never binds one for longer than it takes to see that it is free.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from random import SystemRandom

_FIRST = 10_000


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 on which nothing listens.

    They lie below those that the kernel itself gives to connections, one of which could take a port between the choice
    and its use; and they are drawn at random, so that processes that choose at the same time choose differently.
    """
    end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    ports: list[int] = []
    with ExitStack() as stack:
        while len(ports) < count:
            one = stack.enter_context(socket.socket())
            with suppress(OSError):  # taken
                one.bind(("127.0.0.1", SystemRandom().randrange(_FIRST, end) if end > _FIRST else 0))
                ports.append(one.getsockname()[1])
    return ports
