"""The two sides on which servers stand during a rollout, and where a caller stands between them.

Owns the names of the sides and the place of a caller. Never knows a server.
"""

from __future__ import annotations

import hashlib

STABLE = "stable"
CANARY = "canary"
SIDES = (STABLE, CANARY)

_BITS = 53  # what a float holds


def position(identity: bytes) -> float:
    """Return the place of a caller from 0 to 100, which is always the same; below the canary's weight it goes there.

    A weight that grows therefore moves callers to the canary and none away from it.

    Args:
        identity: the id of a key, or what the requests of a conversation have in common.
    """
    digest = hashlib.blake2b(identity, digest_size=8, person=b"trident side").digest()
    return (int.from_bytes(digest, "big") >> (64 - _BITS)) / (1 << _BITS) * 100
