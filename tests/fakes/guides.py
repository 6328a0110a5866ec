"""Guides over one tokenizer of the zoo, and walks through what they allow."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from trident_backend.guided.compiler import CompiledGrammar, GrammarCompiler
from trident_backend.sequences.guide import Guide

#: More than any tokenizer of the zoo has, and no multiple of 32.
VOCAB_SIZE = 1001


NO_TEXT = VOCAB_SIZE - 1


FAMILY = "byte_level_bpe"


def seeded(seed: int) -> random.Random:
    """Random numbers of a test."""
    return random.Random(seed)  # noqa: S311 (no secrets)


def guides_for(tokenizer: Tokenizer, folder: Path, **options: int) -> GrammarCompiler:
    """A compiler for an engine folder with this tokenizer."""
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    return GrammarCompiler(folder, VOCAB_SIZE, **options)


def allowed(guide: Guide, draft_ids: tuple[int, ...] = ()) -> list[set[int]]:
    """The tokens that the guide allows now and after each guess; nothing beyond the vocabulary."""
    masks = np.full((1 + len(draft_ids), -(-VOCAB_SIZE // 32)), 0xFFFFFFFF, np.uint32)
    guide.fill(draft_ids, masks)
    rows = [np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist() for mask in masks]
    assert all(max(row, default=0) < VOCAB_SIZE for row in rows)
    return [set(row) for row in rows]


def follow(guide: Guide, token_ids: list[int]) -> bool:
    """Whether the guide allows these tokens; it has followed them then."""
    for token_id in token_ids:
        if token_id not in allowed(guide)[0]:
            return False
        guide.advance(token_id)
    return True


def write(
    guide: Guide, rng: random.Random, *, end_id: int = NO_TEXT, closers: frozenset[int] = frozenset(), most: int = 300
) -> tuple[list[int], bool]:
    """A random text of the guide, and whether it has come to its end; closers are preferred half of the time."""
    token_ids: list[int] = []
    while len(token_ids) < most:
        choices = allowed(guide)[0]
        assert choices, "a guide that is not finished allows something"
        preferred = sorted(choices & (closers | {end_id}))
        token_id = rng.choice(preferred if preferred and rng.random() < 0.5 else sorted(choices))
        if token_id == end_id:
            return token_ids, True
        token_ids.append(token_id)
        guide.advance(token_id)
        if guide.is_finished:
            assert allowed(guide)[0] == {end_id}
            return token_ids, True
    return token_ids, False


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text."""
    token_ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return token_ids


def accepts(tokenizer: Tokenizer, grammar: CompiledGrammar, text: str) -> bool:
    """Whether the text can be written, and may end."""
    guide = grammar.start(frozenset({NO_TEXT}))
    return follow(guide, encode(tokenizer, text)) and NO_TEXT in allowed(guide)[0]
