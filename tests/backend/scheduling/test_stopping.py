"""What ends an output, and what is told of it: token by token, and inside a run of draft tokens."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.core import make_sequence
from tests.fakes.followers import Grammar, Words
from trident_backend.kv.blocks import BlockManager
from trident_backend.scheduling.scheduler import Scheduler
from trident_backend.sequences.choices import NO_TOKEN, Choices, TokenLogProbs
from trident_backend.sequences.ngram_drafter import NgramDrafter
from trident_backend.sequences.sequence import FinishReason, Sequence
from trident_backend.sequences.step_time import StepSize, StepTimeModel
from trident_backend.sequences.steps import ScheduledChunk, SchedulerOutput
from trident_ensemble.contract.errors import CancelledError, EngineError
from trident_ensemble.contract.settings import CoreSettings

EOS, STOP, LENGTH = FinishReason.EOS, FinishReason.STOP, FinishReason.LENGTH


def _scheduler() -> Scheduler:
    return Scheduler(BlockManager(16, 4), 2, 8, CoreSettings(), StepTimeModel())


def _generate(sequence: Sequence, token_ids: list[int]) -> Scheduler:
    """Let these be chosen, one a step, until it ends."""
    scheduler = _scheduler()
    scheduler.add(sequence, 0.0)
    for token_id in token_ids:
        if sequence.finish_reason is None:
            scheduler.update(scheduler.schedule(0.0), Choices([token_id]), 1.0, 0.01)
    return scheduler


def _request(max_tokens: int = 6, words: tuple[str, ...] = (), length: int = 0, **fields: Any) -> Sequence:
    fields["stop_strings"] = Words(words) if words else None
    fields["guide"] = Grammar(length) if length else None
    return make_sequence(0, [1], max_tokens, **{"end_ids": frozenset({7}), "stop_ids": frozenset({8}), **fields})


@pytest.mark.parametrize(
    ("fields", "chosen", "output", "reason", "stop_reason", "num_hidden_tail_tokens"),
    [
        ({}, [5, 7], [5, 7], EOS, "", 1),
        ({}, [5, 8], [5, 8], STOP, "8", 1),
        ({"stop_ids": frozenset({7})}, [7], [7], EOS, "", 1),
        ({"include_stop": True}, [5, 7], [5, 7], EOS, "", 0),
        ({"include_stop": True}, [5, 8], [5, 8], STOP, "8", 0),
        ({}, [5] * 9, [5] * 6, LENGTH, "", 0),
        ({"words": ("52", "2")}, [5, 2, 5], [5, 2], STOP, "52", 0),
        ({"words": ("78", "9")}, [5, 7], [5, 7], EOS, "", 1),
        ({"words": ("4",)}, [4, 5], [4, 5], STOP, "4", 0),
        ({"words": ("4",)}, [4, 7], [4, 7], STOP, "4", 1),
        ({"words": ("4",)}, [4, 8], [4, 8], STOP, "4", 1),
        ({"words": ("4",), "max_tokens": 2}, [5, 4], [5, 4], STOP, "4", 0),
        ({"words": ("55",), "max_tokens": 2}, [5, 5], [5, 5], STOP, "55", 0),
        ({"length": 3}, [5, 6, 5, 6], [5, 6, 5], STOP, "", 0),
        ({"length": 2, "words": ("4",)}, [5, 4], [5, 4], STOP, "4", 0),
        ({"length": 6}, [5, 6, 5, 6, 5, 6], [5, 6, 5, 6, 5, 6], STOP, "", 0),
        ({"length": 6}, [5, 7], [5, 7], EOS, "", 1),
        ({"max_tokens": 0}, [5], [], LENGTH, "", 0),
        ({"max_tokens": 0, "length": 2, "words": ("5",)}, [5], [], LENGTH, "", 0),
    ],
)
def test_stopping_why_it_ends(  # noqa: PLR0917
    fields: dict[str, Any],
    chosen: list[int],
    output: list[int],
    reason: FinishReason,
    stop_reason: str,
    num_hidden_tail_tokens: int,
) -> None:
    sequence = _request(**fields)
    scheduler = _generate(sequence, chosen)
    assert sequence.token_ids == [1, *output]
    assert (sequence.finish_reason, sequence.stop_reason) == (reason, stop_reason)
    assert sequence.num_hidden_tail_tokens == num_hidden_tail_tokens
    assert sequence.error is None
    assert scheduler.take_ended() == [sequence]
    assert not scheduler.running, "its room is free at once"


def test_stopping_a_token_that_ends_the_text_is_shown_to_nobody() -> None:
    for end in (7, 8):
        sequence = _request(words=("99",), length=6)
        _generate(sequence, [5, 6, end])
        followers: list[Any] = [sequence.stop_strings, sequence.guide]
        assert [follower.seen for follower in followers] == [[5, 6], [5, 6]]


def test_stopping_without_a_token_to_choose_it_fails_and_keeps_what_it_has() -> None:
    sequence = _request()
    scheduler = _generate(sequence, [5, NO_TOKEN])
    assert (sequence.token_ids, sequence.finish_reason) == ([1, 5], FinishReason.ERROR)
    assert isinstance(sequence.error, EngineError)
    assert "no token can be chosen" in str(sequence.error)
    assert scheduler.take_ended() == [sequence]


def test_stopping_nothing_is_kept_for_others_of_what_may_be_no_number() -> None:
    scheduler = _scheduler()
    for number, num_cached in ((0, 0), (1, 0), (2, 4)):
        sequence = make_sequence(number, [1, 2, 3, 4, 5], 2)
        scheduler.add(sequence, 0.0)
        output = scheduler.schedule(0.0)
        assert sequence.num_cached_tokens == num_cached
        (advance,) = scheduler.update(output, Choices([NO_TOKEN if number == 0 else 9]), 1.0, 0.1) or [None]
        assert (advance is None) == (number == 0), "who has got nothing has not advanced"
        scheduler.finish(sequence, FinishReason.CANCELLED)


@pytest.mark.parametrize(
    ("fields", "draft_ids", "chosen", "output", "reason"),
    [
        ({}, (5, 6), [5, 6, 9], [5, 6, 9], None),
        ({}, (5, 6), [5, 9, 6], [5, 9], None),
        ({}, (5, 6), [9, 6, 6], [9], None),
        ({}, (5, 7), [5, 7, 9], [5, 7], EOS),
        ({}, (5, 8), [5, 8, 9], [5, 8], STOP),
        ({"words": ("56",)}, (5, 6), [5, 6, 9], [5, 6], STOP),
        ({"length": 2}, (5, 6), [5, 6, 9], [5, 6], STOP),
        ({"max_tokens": 2}, (5, 6), [5, 6, 9], [5, 6], LENGTH),
        ({}, (5, 6), [5, NO_TOKEN, 9], [5], FinishReason.ERROR),
        ({}, (5, 6), [NO_TOKEN, 6, 9], [], FinishReason.ERROR),
    ],
)
def test_stopping_accept_takes_draft_tokens_as_if_chosen_one_by_one(
    fields: dict[str, Any], draft_ids: tuple[int, ...], chosen: list[int], output: list[int], reason: FinishReason
) -> None:
    scheduler, sequence = _scheduler(), _request(**fields)
    sequence.drafter = NgramDrafter()
    scheduler.add(sequence, 0.0)
    scheduler.schedule(0.0)
    chunk = ScheduledChunk(sequence, 1, completes=True, draft_ids=draft_ids)
    log_probs = {row: TokenLogProbs(-float(row)) for row in range(3)}
    step = SchedulerOutput((chunk,), StepSize(3, 6, 3))
    advances = scheduler.update(step, Choices(chosen, log_probs), 1.0, 0.01)
    assert (sequence.token_ids, sequence.finish_reason) == ([1, *output], reason)
    assert [advance.num_tokens for advance in advances] == ([len(output)] if output else [])
    assert sequence.log_probs == [log_probs[row] for row in range(len(output))]
    assert sequence.num_draft_tokens == 2
    followers: list[Any] = [sequence.stop_strings, sequence.guide]
    for follower in followers:
        assert follower is None or follower.seen == output


def test_stopping_a_sequence_asked_to_stop_gives_what_had_been_held_back() -> None:
    for error in (None, CancelledError("its client is gone")):
        sequence = _request(words=("99",))
        scheduler = _generate(sequence, [5, 9])
        scheduler.finish(sequence, FinishReason.CANCELLED, error)
        assert (sequence.finish_reason, sequence.error) == (FinishReason.CANCELLED, error)
        assert sequence.stop_strings is not None
        assert sequence.stop_strings.num_safe_tokens == (0 if error else 2)


def test_stopping_a_stop_string_in_what_had_been_held_back_is_why_it_stops() -> None:
    sequence = _request(words=("4",))
    _generate(sequence, [5, 4]).finish(sequence, FinishReason.CANCELLED)
    assert (sequence.finish_reason, sequence.stop_reason) == (STOP, "4")
