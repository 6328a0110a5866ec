"""How callers are divided between the stable side and a canary."""

from __future__ import annotations

import secrets
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trident_gateway.access.key_file import new_key
from trident_gateway.upstream.sides import position

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
WEIGHTS = st.floats(0, 100)


@given(st.binary(max_size=40), st.lists(WEIGHTS, min_size=2, max_size=8))
def test_position_grows_into_the_canary_and_never_out_of_it(identity: bytes, weights: list[float]) -> None:
    """As a rollout goes from stage to stage."""
    place = position(identity)
    assert 0 <= place < 100
    stages = [place < weight for weight in sorted(weights)]
    assert stages == sorted(stages)
    assert position(identity) == place


@pytest.mark.parametrize("weight", [1, 5, 10, 50, 99])
def test_position_gives_a_canary_its_share_of_keys(weight: float) -> None:
    """Within two points, of ten thousand keys as `trident keys` makes them and of any others."""
    keys = [new_key("t", NOW)[1].id.encode() for _ in range(10_000)]
    for identities in (keys, [secrets.token_bytes(9) for _ in keys], [b"%d" % index for index in range(len(keys))]):
        share = sum(position(identity) < weight for identity in identities) / len(identities)
        assert abs(100 * share - weight) < 2
