"""What one guide costs, or does wrong, is its own request's: others get their tokens, and it gets the right error."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes.core import (
    SPEC,
    Clock,
    add,
    expected_output,
    expected_tokens,
    make_core,
    make_sequence,
    run_to_end,
)  # fmt: skip
from tests.fakes.guides import FAMILY, VOCAB_SIZE, encode, guides_for
from tests.tokenizer_zoo import tokenizer_of
from trident_backend.core import EngineCore
from trident_backend.engine.host_logits import HostLogits
from trident_backend.engine.mock import MockEngine
from trident_backend.guided.mask_worker import MaskWorker
from trident_backend.sequences.guide import MASK_WORD, Masks
from trident_backend.sequences.sampling_params import SamplingParams
from trident_backend.sequences.sequence import FinishReason, Sequence
from trident_ensemble.contract.errors import EngineError, InvalidGuideError, RequestError, TridentError
from trident_ensemble.contract.settings import CoreSettings


class Allows:
    """Allows the same tokens at each place; fills its mask when it may."""

    is_finished = False
    failure: TridentError | None = None

    def __init__(self, *token_ids: int) -> None:
        self.token_ids = token_ids
        self.gate = threading.Event()
        self.gate.set()
        self.seen: list[int] = []

    def fill(self, draft_ids: tuple[int, ...], masks: Masks) -> None:
        assert self.gate.wait(60)
        masks[:] = 0
        for token_id in self.token_ids:
            masks[:, token_id // MASK_WORD] |= np.uint32(1 << token_id % MASK_WORD)

    def advance(self, token_id: int) -> None:
        self.seen.append(token_id)


def failed(core: EngineCore, sequence: Sequence) -> TridentError:
    """The error of a sequence that ends with one, while another beside it does not."""
    other = make_sequence(99, [3], 5)
    add(core, sequence, other)
    run_to_end(core)
    core.close()
    assert other.token_ids[1:] == expected_output(make_sequence(99, [3], 5))
    assert sequence.finish_reason is FinishReason.ERROR
    assert sequence.error is not None
    return sequence.error


@pytest.mark.parametrize(
    ("sampling", "named"),
    [
        (SamplingParams(bad_words=((7,), (8,))), ["bad_words"]),
        (SamplingParams(bad_words=((7,),), min_tokens=3), ["bad_words", "min_tokens"]),
        (SamplingParams(logit_bias=((7, -100.0), (8, -100.0))), ["logit_bias"]),
    ],
)
def test_guided_slow_bans_that_leave_nothing_of_a_guide_are_the_requests_fault(
    sampling: SamplingParams, named: list[str]
) -> None:
    core, _ = make_core()
    guided = make_sequence(1, [4], 9, guide=Allows(7, 8), sampling=sampling, end_ids=frozenset({8}))
    error = failed(core, guided)
    assert isinstance(error, RequestError)
    assert error.field == "guided_decoding_guide"
    assert error.problem == f"allows no token at token 1 of the output that {' and '.join(named)} leave"


def test_guided_slow_a_guide_that_allows_nothing_is_the_requests_fault() -> None:
    error = failed(make_core()[0], make_sequence(1, [4], 9, guide=Allows()))
    assert str(error) == "guided_decoding_guide: allows no token at token 1 of the output"
    guide = Allows()
    guide.failure = RequestError("guided_decoding_guide", "a reason of its own")
    assert failed(make_core()[0], make_sequence(1, [4], 9, guide=guide)) is guide.failure


def test_guided_slow_bans_that_leave_nothing_at_all_are_the_requests_fault() -> None:
    words = tuple((token_id,) for token_id in range(SPEC.vocab_size))
    error = failed(make_core()[0], make_sequence(1, [4], 9, sampling=SamplingParams(bad_words=words)))
    assert str(error) == "bad_words: bans every token at token 1 of the output"
    biases = tuple((token_id, -100.0) for token_id in range(SPEC.vocab_size))
    error = failed(make_core()[0], make_sequence(1, [4], 9, sampling=SamplingParams(logit_bias=biases)))
    assert str(error) == "logit_bias: bans every token at token 1 of the output"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("guide", [None, Allows(7, 8)])
def test_guided_slow_logits_that_are_no_numbers_are_the_engines_fault(number: float, guide: Allows | None) -> None:
    class Broken(MockEngine):
        def collect(self) -> HostLogits:
            logits = super().collect()
            logits.array[:] = number
            return logits

    core = EngineCore(Broken(SPEC), CoreSettings(), Clock())
    sequence = make_sequence(1, [4], 9, guide=guide)
    add(core, sequence)
    run_to_end(core)
    core.close()
    if guide is None or not math.isinf(number) or number > 0:
        assert isinstance(sequence.error, EngineError)
        assert "not finite numbers" in str(sequence.error)


def test_guided_slow_others_get_their_tokens_while_a_guide_takes_its_time() -> None:
    core, _ = make_core()
    slow = Allows(*range(SPEC.vocab_size))
    slow.gate.clear()
    guided, plain = make_sequence(1, [4, 5], 6, guide=slow), make_sequence(2, [6], 40)
    add(core, guided, plain)
    while plain.finish_reason is None:
        core.step()
    assert guided.num_output_tokens == 0
    assert plain.token_ids[1:] == expected_output(make_sequence(2, [6], 40))
    result = core.step()
    assert not result.output.chunks
    assert result.awaits_masks, "so the loop does not fall asleep"
    slow.gate.set()
    while guided.finish_reason is None:
        core.step()
    core.close()
    assert guided.token_ids[2:] == expected_output(make_sequence(1, [4, 5], 6)) == slow.seen


def test_guided_slow_a_guide_without_end_ends_its_own_request() -> None:
    core, _ = make_core()
    core._masks.close()
    core._masks = MaskWorker(SPEC.vocab_size, limit_s=0.05)
    stuck = Allows(1)
    stuck.gate.clear()
    error = failed_while(core, stuck)
    assert isinstance(error, InvalidGuideError)
    assert "a mask took more than 0.05 s" in error.problem


def failed_while(core: EngineCore, stuck: Allows) -> TridentError | None:
    """The error of a sequence whose guide is stuck; the core is closed then."""
    guided = make_sequence(1, [4], 6, guide=stuck)
    add(core, guided)
    for _ in range(10_000):
        core.step()
        if guided.finish_reason is not None:
            break
    stuck.gate.set()
    core.close()
    assert core.kv_cache.num_used == 0
    return guided.error


def test_guided_slow_an_adversarial_grammar_costs_its_own_request_and_not_everybodys_steps(tmp_path: Path) -> None:
    """A mask of this grammar, and even following one token, takes tens of milliseconds after some hundred tokens."""
    tokenizer = tokenizer_of(FAMILY)
    (letter,) = encode(tokenizer, "a")
    guide = guides_for(tokenizer, tmp_path).compile("ebnf_grammar", 'root ::= root root | "a"').start(frozenset())
    for _ in range(250):
        guide.advance(letter)
    spec = replace(SPEC, vocab_size=VOCAB_SIZE, max_seq_len=256, num_blocks=256)
    core = EngineCore(MockEngine(spec), CoreSettings(), time.monotonic)
    core._masks.close()
    core._masks = MaskWorker(spec.vocab_size, limit_s=60)  # a busy machine may take seconds for what is not too costly
    hostile = make_sequence(1, [letter], 200, guide=guide)
    plain = [make_sequence(number, [number], 60) for number in range(2, 5)]
    add(core, hostile, *plain)
    computed: list[float] = []
    while not all(sequence.finish_reason for sequence in plain):
        began = time.thread_time()
        core.step()
        computed.append(time.thread_time() - began)
    assert hostile.finish_reason is None
    assert sorted(computed)[len(computed) // 2] < 0.004, "nothing of it is done on the thread of all"
    assert sum(seconds > 0.01 for seconds in computed) <= 2
    core.scheduler.finish(hostile, FinishReason.CANCELLED)
    core.close()
    assert [sequence.token_ids[1:] for sequence in plain] == [
        expected_tokens([number], 60, VOCAB_SIZE) for number in range(2, 5)
    ]


def test_guided_slow_a_guide_that_is_complete_is_found_out_while_its_mask_is_filled() -> None:
    """As one does that follows its tokens there, because that takes long."""

    class Lazy(Allows):
        def fill(self, draft_ids: tuple[int, ...], masks: Masks) -> None:
            if len(self.seen) == 3:
                self.is_finished = True
                masks[:] = 0
            else:
                super().fill(draft_ids, masks)

    fields: dict[str, Any] = {"guide": Lazy(*range(SPEC.vocab_size))}
    sequence = make_sequence(1, [4], 9, **fields)
    core, _ = make_core()
    add(core, sequence)
    run_to_end(core)
    core.close()
    assert sequence.token_ids[1:] == expected_output(make_sequence(1, [4], 3))
    assert sequence.finish_reason is FinishReason.STOP
    assert sequence.error is None
