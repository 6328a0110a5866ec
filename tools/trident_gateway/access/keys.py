"""The keys of a gateway, read from a file."""

from __future__ import annotations


class KeyStore:
    """The keys that are valid now."""
