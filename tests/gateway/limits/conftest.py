"""Fixtures for the tests of limits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.limits.redis_servers import RedisServer


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    """Yield a server that the tests of a module share; each names accounts of its own."""
    with RedisServer() as server:
        yield server
