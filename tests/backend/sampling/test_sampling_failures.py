"""Logits that fail: a device may be lost between a step's computation and the choice of its tokens."""

from __future__ import annotations

from typing import NoReturn

from tests.fakes.core import SPEC, Clock, add, expected_tokens, make_sequence
from trident_backend.core import EngineCore
from trident_backend.engine.host_logits import HostLogits
from trident_backend.engine.mock import MockEngine
from trident_backend.engine.numpy_kernels import NumpyKernels
from trident_backend.engine.protocol import Indices
from trident_backend.sequences.sequence import FinishReason
from trident_ensemble.contract.errors import EngineError
from trident_ensemble.contract.settings import CoreSettings


class LostLogits(HostLogits):
    def argmax(self, rows: Indices) -> NoReturn:
        raise EngineError("the device is gone")


class Forgetful(MockEngine):
    """Loses the logits of one step."""

    def collect(self) -> HostLogits:
        logits = super().collect()
        return LostLogits(logits.array, NumpyKernels()) if self.num_steps == 3 else logits


def test_sampling_failures_a_step_whose_logits_are_lost_is_a_failed_step() -> None:
    core = EngineCore(Forgetful(SPEC), CoreSettings(), Clock())
    first, second = make_sequence(1, [5, 6], 8), make_sequence(2, [7], 8)
    add(core, first)
    results = [core.step() for _ in range(3)]
    assert [result.error is None for result in results] == [True, True, False]
    assert first.finish_reason is FinishReason.ERROR
    add(core, second)
    while second.finish_reason is None:
        core.step()
    assert second.token_ids[1:] == expected_tokens([7], 8)
    core.close()
