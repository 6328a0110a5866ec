"""The text of one growing output, token by token.

Owns the ids that decoding the next token needs, and where the text ended after each. Pure. Never searches.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from trident_ensemble.text.anchors import ANCHOR, CONTINUATION, NOTHING, TokenTable, context_ids, context_start, kind_of
from trident_ensemble.text.detokenizer import Detokenizer


class Reading:
    """An output's text, with special tokens or without.

    Args:
        detokenizer: postprocessing's.
        anchors: of `anchors.anchor_table`.
        echoed_ids: what comes before the output.
        skip_special_tokens: they are no text.

    Attributes:
        ends: where the text that is settled ends, in characters, after none, one, two, ... tokens of the output.
    """

    def __init__(
        self, detokenizer: Detokenizer, anchors: TokenTable, echoed_ids: Sequence[int], *, skip_special_tokens: bool
    ) -> None:
        self._detokenizer = detokenizer
        self._anchors = anchors
        self._skip = skip_special_tokens
        self.ends = [len(self._decode([], echoed_ids))]
        self._context_ids = context_ids(anchors, echoed_ids, len(echoed_ids), skip_special_tokens=skip_special_tokens)

    def fork(self) -> Reading:
        """Return the same for another output that has begun in the same way."""
        other = copy.copy(self)
        other.ends = list(self.ends)
        other._context_ids = list(self._context_ids)
        return other

    def append(self, token_id: int) -> str:
        """Take the next token; return the text that it settles."""
        text = self._decode(self._context_ids, (token_id,))
        self.ends.append(self.ends[-1] + len(text))
        self._extend_context(token_id)
        return text

    def rest(self) -> str:
        """Return what is not settled, as it is if no token comes any more."""
        return self._decode(self._context_ids, (), is_last=True)

    def _decode(self, context: Sequence[int], new_ids: Sequence[int], *, is_last: bool = False) -> str:
        return self._detokenizer.text(context, new_ids, is_last=is_last, skip_special_tokens=self._skip)

    def _extend_context(self, token_id: int) -> None:
        """Keep what `context_ids` of all tokens would return, without walking back through all that are no anchors."""
        kind = kind_of(self._anchors[token_id], skip_special_tokens=self._skip)
        if kind == NOTHING:
            return
        if kind == ANCHOR:
            self._context_ids.clear()
        self._context_ids.append(token_id)
        if kind == CONTINUATION:
            ids = self._context_ids
            del ids[: context_start(self._anchors, ids, len(ids), skip_special_tokens=self._skip)]
