"""Names the content of full blocks, so that equal prefixes are found.

Owns the digest: of a block's tokens, of all blocks before it and of the salt. Two blocks of equal digest hold the same
keys and values. Never knows where a block lies.
"""

from __future__ import annotations

from array import array
from hashlib import blake2b

from trident_backend.sequences.sequence import Sequence

#: Bytes; long enough that nobody finds a prompt that reads another's blocks.
_DIGEST_SIZE = 16


def block_digests(sequence: Sequence, num_blocks: int, block_size: int) -> list[bytes]:
    """The digests of the sequence's first `num_blocks` full blocks, at least; kept with the sequence.

    Args:
        sequence: with at least `num_blocks * block_size` tokens.
        num_blocks: how many are wanted.
        block_size: tokens in a block.
    """
    digests = sequence.block_digests
    while len(digests) < num_blocks:
        start = len(digests) * block_size
        parent = digests[-1] if digests else sequence.cache_salt.encode()
        # The first block is told from all others, so that no salt can pose as a parent.
        person = b"block" if digests else b"first"
        tokens = array("i", sequence.token_ids[start : start + block_size]).tobytes()
        digests.append(blake2b(parent + tokens, digest_size=_DIGEST_SIZE, person=person).digest())
    return digests
