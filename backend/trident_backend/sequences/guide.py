"""What the core asks of guided decoding: the grammar matcher of one growing text.

Owns the interface and the masks' layout. Never knows a grammar's language or a library.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from trident_ensemble.contract.errors import TridentError

#: Tokens in one word of a mask; token t is bit t % 32 (least significant first) of word t // 32.
MASK_WORD = 32

Masks = npt.NDArray[np.uint32]


class RowMasks(NamedTuple):
    """The tokens that some of a step's rows allow.

    Args:
        rows: `[G]`, the rows of logits, ascending; all others allow every token.
        words: uint32 `[G, ceil(vocab_size / MASK_WORD)]`.
    """

    rows: npt.NDArray[np.intp]
    words: Masks


class Guide(Protocol):
    """Follows one sequence's output through its grammar. Used by one thread at a time."""

    @property
    def is_finished(self) -> bool:
        """Whether the output is complete and nothing may follow but its end.

        A guide may find that out only when it fills the masks for what would follow.
        """
        ...

    @property
    def failure(self) -> TridentError | None:
        """Why the guide allows nothing any more though the output is not complete; None while it can be followed."""
        ...

    def fill(self, draft_ids: tuple[int, ...], masks: Masks) -> None:
        """Write which tokens may come next, now and after each draft token.

        Args:
            draft_ids: draft tokens; the state is unchanged afterwards. After one that the grammar does not allow the
                rest of the masks may hold anything.
            masks: `[1 + len(draft_ids), words]`, written; the sequence's end ids are allowed where the text may end.
        """
        ...

    def advance(self, token_id: int) -> None:
        """Follow a chosen token. One that ends the text, and so is not part of the grammar, is never given."""
        ...
