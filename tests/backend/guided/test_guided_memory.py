"""Grammars share one bounded memory: what is not in use makes room, and what does not fit is refused by itself."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.fakes.guides import FAMILY, NO_TEXT, allowed, encode, guides_for, seeded
from tests.tokenizer_zoo import tokenizer_of
from trident_backend.guided import compiler as compiler_module
from trident_backend.guided.memory import GuideMemory
from trident_ensemble.contract.errors import InvalidGuideError, UnavailableError

FEW = 100
MANY = 400
SMALL = FEW * 2048
LARGE = MANY * 2048
#: Needs a state for each of the last letters, so it uses up any number of them.
GREEDY = "(a|b|c)*a(a|b|c){12}"


@pytest.fixture
def tokenizer(monkeypatch: pytest.MonkeyPatch) -> Tokenizer:
    monkeypatch.setattr(compiler_module, "_FEW_LEXER_STATES", FEW)
    monkeypatch.setattr(compiler_module, "_MAX_LEXER_STATES", MANY)
    return tokenizer_of(FAMILY)


def test_guided_memory_a_share_is_given_back_when_nobody_holds_it() -> None:
    memory = GuideMemory(10)
    first, second = memory.take(6), memory.take(4)
    with pytest.raises(UnavailableError, match="guided_memory_mb"):
        memory.take(1)
    del first
    assert memory.num_bytes == 4
    with pytest.raises(UnavailableError):
        memory.take(7)
    third = memory.take(6)
    assert memory.num_bytes == 10
    del second, third
    assert memory.num_bytes == 0


def test_guided_memory_room_is_made_as_long_as_it_helps() -> None:
    memory = GuideMemory(10)
    kept = [memory.take(3) for _ in range(3)]

    def drop_one() -> bool:
        return bool(kept) and kept.pop(0) is not None

    share = memory.take(7, drop_one)
    assert len(kept) == 1
    assert memory.num_bytes == 10
    with pytest.raises(UnavailableError):
        memory.take(11, drop_one)
    assert (memory.num_bytes, share is not None) == (7, True)


def test_guided_memory_kept_grammars_make_room_and_those_in_use_do_not(tokenizer: Tokenizer, tmp_path: Path) -> None:
    guides = guides_for(tokenizer, tmp_path, max_bytes=3 * SMALL)
    first = guides.compile("regex", "a")
    used = first.start(frozenset({NO_TEXT}))
    del first
    for number in range(1, 9):
        guides.compile("regex", f"b{{{number}}}")
    assert guides.memory.num_bytes == 3 * SMALL
    others = [guides.compile("regex", f"c{{{number}}}").start(frozenset()) for number in (1, 2)]
    with pytest.raises(UnavailableError, match="the guides in use take all of guided_memory_mb"):
        guides.compile("regex", "d")
    guides.compile("regex", "a").start(frozenset())
    assert allowed(used)[0], "whoever has a guide keeps it"
    others.pop()
    gc.collect()
    guides.compile("regex", "d")
    assert guides.memory.num_bytes == 3 * SMALL


def test_guided_memory_a_refused_guide_takes_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    guides = guides_for(tokenizer, tmp_path, max_bytes=2 * SMALL)
    for _ in range(20):
        with pytest.raises(InvalidGuideError):
            guides.compile("regex", "[a")
    gc.collect()
    assert guides.memory.num_bytes == 0


def test_guided_memory_a_sequence_that_needs_more_than_there_is_ends_with_its_error_and_no_other_does(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    letters = [encode(tokenizer, letter)[0] for letter in "abc"]
    guides = guides_for(tokenizer, tmp_path, max_bytes=2 * SMALL + LARGE)
    greedy, modest = (guides.compile("regex", text).start(frozenset({NO_TEXT})) for text in (GREEDY, "[abc]+"))
    rng = seeded(1)
    num_tokens = 0
    while allowed(greedy)[0]:
        greedy.advance(rng.choice(letters))
        num_tokens += 1
        assert guides.memory.num_bytes <= 2 * SMALL + LARGE
        assert num_tokens < 5000
    assert num_tokens > FEW
    assert isinstance(greedy.failure, UnavailableError)
    assert not greedy.is_finished
    assert modest.failure is None
    assert set(letters) <= allowed(modest)[0]


def test_guided_memory_a_sequence_that_uses_up_the_most_that_one_may_have_is_the_requests_fault(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    letters = [encode(tokenizer, letter)[0] for letter in "abc"]
    guides = guides_for(tokenizer, tmp_path)
    greedy = guides.compile("regex", GREEDY).start(frozenset({NO_TEXT}))
    rng = seeded(1)
    num_tokens = 0
    while allowed(greedy)[0] and num_tokens < 5000:
        greedy.advance(rng.choice(letters))
        num_tokens += 1
    assert isinstance(greedy.failure, InvalidGuideError)
    assert greedy.failure.field == "guided_decoding_guide"
    assert "has become too costly to follow at token" in greedy.failure.problem
    assert "too many states" in greedy.failure.problem


def test_guided_memory_what_is_followed_is_the_same_on_few_states_and_on_many(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moving to a larger automaton in the middle of a text changes no mask."""
    letters = [encode(tokenizer, letter)[0] for letter in "abc"]
    moving = guides_for(tokenizer, tmp_path).compile("regex", GREEDY).start(frozenset({NO_TEXT}))
    monkeypatch.setattr(compiler_module, "_FEW_LEXER_STATES", MANY)
    staying = guides_for(tokenizer, tmp_path).compile("regex", GREEDY).start(frozenset({NO_TEXT}))
    rng = seeded(2)
    for _ in range(150):
        draft_ids = tuple(rng.choices(letters, k=2))
        assert allowed(moving, draft_ids) == allowed(staying, draft_ids)
        token_id = rng.choice(letters)
        moving.advance(token_id)
        staying.advance(token_id)
