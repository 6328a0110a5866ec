"""The KV cache for an engine.

Owns the choice between blocks and slots, by what the engine says of itself; nobody else knows which it is.
"""

from __future__ import annotations

from trident_backend.engine.protocol import EngineSpec
from trident_backend.kv.blocks import BlockManager
from trident_backend.kv.cache import KVCache
from trident_backend.kv.slots import SlotManager
from trident_ensemble.contract.manifest import KVKind

#: Tokens of a slot that are known by content together: few enough that little of a prefix is computed again.
SLOT_GRANULE = 32


def make_kv_cache(spec: EngineSpec, *, reuse: bool) -> KVCache:
    """The empty KV cache of an engine.

    Args:
        spec: says which kind, and how large.
        reuse: whether what one sequence has computed is found by others.
    """
    if spec.kv_kind is KVKind.SLOTS:
        return SlotManager(spec.num_blocks, spec.block_size, granule=SLOT_GRANULE, reuse=reuse)
    return BlockManager(spec.num_blocks, spec.block_size, reuse=reuse)
