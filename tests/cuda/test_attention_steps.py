"""Kernels of attention in more random steps: the other half of those in test_attention_kernels.py, for another core."""

from __future__ import annotations

import pytest

from tests.cuda.attention_steps import NUM_STEPS, check_step


@pytest.mark.parametrize("seed", range(NUM_STEPS, 2 * NUM_STEPS))
def test_attention_kernels_are_right_in_a_random_mixed_step(seed: int) -> None:
    check_step(seed)
