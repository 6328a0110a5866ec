"""Markers: tokens that a request asks to be shown by id, where they stand in a text that leaves them out.

Owns what it means to leave tokens out, which postprocessing and the core's search for stop strings both keep to: the
text is that of the other tokens, so that a character whose bytes stand on both sides of a marker follows it. Never
keeps anything of a stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from trident_ensemble.text.anchors import NOTHING, TokenTable, context_ids, kind_of
from trident_ensemble.text.detokenizer import Detokenizer


class HidingTable:
    """A table of `anchors` in which some tokens are no text."""

    __slots__ = ("_hidden", "_table")

    def __init__(self, table: TokenTable, hidden: AbstractSet[int]) -> None:
        self._table = table
        self._hidden = hidden

    def __getitem__(self, token_id: int, /) -> int:
        return NOTHING if token_id in self._hidden else self._table[token_id]


class HidingDetokenizer:
    """A detokenizer for which some tokens are no text."""

    def __init__(self, detokenizer: Detokenizer, hidden: AbstractSet[int]) -> None:
        self._detokenizer = detokenizer
        self._hidden = hidden

    def text(
        self, context_ids: Sequence[int], new_ids: Sequence[int], *, is_last: bool, skip_special_tokens: bool = True
    ) -> str:
        """Return the text that one chunk adds to its stream."""
        hidden = self._hidden
        return self._detokenizer.text(
            [token_id for token_id in context_ids if token_id not in hidden],
            [token_id for token_id in new_ids if token_id not in hidden],
            is_last=is_last,
            skip_special_tokens=skip_special_tokens,
        )


class MarkerReader:
    """Decodes chunks whose markers are to be found.

    Args:
        detokenizer: decodes the rest.
        table: of `anchors.anchor_table`.
    """

    def __init__(self, detokenizer: Detokenizer, table: TokenTable) -> None:
        self._detokenizer = detokenizer
        self._table = table

    def read(
        self,
        context: Sequence[int],
        new_ids: Sequence[int],
        markers: AbstractSet[int],
        *,
        is_last: bool,
        skip_special_tokens: bool,
    ) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of a chunk, and its markers: how many characters of this text come before, and the id.

        Args:
            context: as `Detokenizer.text` takes it; it may hold markers.
            new_ids: the ids of the chunk.
            markers: the ids that are left out and reported.
            is_last: no further chunk follows.
            skip_special_tokens: other special tokens are no text either.
        """
        text, found = "", []
        past = [token_id for token_id in context if token_id not in markers]
        piece: list[int] = []
        for token_id in new_ids:
            if token_id in markers:
                text += self._add(past, piece, skip_special_tokens=skip_special_tokens)
                found.append((len(text), token_id))
            else:
                piece.append(token_id)
        text += self._add(past, piece, is_last=is_last, skip_special_tokens=skip_special_tokens)
        return text, found

    def _add(self, past: list[int], piece: list[int], *, is_last: bool = False, skip_special_tokens: bool) -> str:
        """Return the text of a piece, and move its ids to those of the past."""
        if not (piece or is_last):
            return ""
        context = context_ids(self._table, past, len(past), skip_special_tokens=skip_special_tokens)
        text = self._detokenizer.text(context, piece, is_last=is_last, skip_special_tokens=skip_special_tokens)
        past += (
            token_id
            for token_id in piece
            if kind_of(self._table[token_id], skip_special_tokens=skip_special_tokens) != NOTHING
        )
        piece.clear()
        return text
