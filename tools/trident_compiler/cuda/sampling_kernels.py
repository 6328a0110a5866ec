"""The operations on logits that sampling is made of, as kernels of an engine, and their limits.

Owns their sizes. Never imports Triton, and knows nothing of models.
"""

from __future__ import annotations

from trident_backend.engine.cuda.names import COPY_ROWS, rank
from trident_backend.engine.gpu.names import Sampling
from trident_backend.engine.gpu.program import SamplingLimits
from trident_backend.engine.protocol import CHUNK_WIDTH
from trident_compiler.cuda.kernel_spec import KernelSpec

#: Rows of one run, at most: so many are kept as they were changed.
MAX_ROWS = 128
#: Pairs of one run, at most.
MAX_PAIRS = 65_536
#: How many of the largest there are kernels for; more are found on the host.
TOP_K_SIZES = (64, 1024, 3840)
#: Tokens with the same logit that one run finds.
NUM_TIES = 64

#: Tokens that a program of a whole row looks at together, and its warps.
_ROW_BLOCK, _ROW_WARPS = 8192, 16
#: Tokens, or pairs, that a program looks at that has a part of a row.
_PART_BLOCK = 1024
#: Blocks of a row that `sampling.select` can count.
_MOST_BLOCKS = 255
#: Keys that a program puts in order, and how many others it compares them with together.
_RANK_BLOCK, _RANK_STEP = 32, 128

_FLOATS, _IDS = "*fp32", "*i32"
_ROWS = {"logits": _FLOATS, "rows": _IDS}
_CHANGED = {**_ROWS, "changed": _FLOATS}


def sampling_specs(vocab_size: int, max_rows: int) -> tuple[dict[str, KernelSpec], SamplingLimits]:
    """Return the kernels of sampling by their names in the program, and the limits of their runs.

    Args:
        vocab_size: V.
        max_rows: rows of the buffer in which a step's logits lie.
    """
    num_rows = min(max_rows, MAX_ROWS)
    sizes = tuple(sorted({min(size, vocab_size) for size in TOP_K_SIZES}))
    limits = SamplingLimits(max_rows, num_rows, MAX_PAIRS, min(NUM_TIES, vocab_size), num_rows, sizes)
    vocab = {"VOCAB": vocab_size}
    block = max(min(_ROW_BLOCK, _power(vocab_size)), _power(-(-vocab_size // _MOST_BLOCKS)))
    whole = {**vocab, "BLOCK": block}
    part = {**vocab, "BLOCK": _PART_BLOCK}
    num_chunks = -(-vocab_size // CHUNK_WIDTH)
    chunked = {**vocab, "WIDTH": CHUNK_WIDTH, "NUM_CHUNKS": num_chunks, "CHUNKS": min(16, _power(num_chunks))}
    ties = {**whole, "COUNT": limits.num_ties, "COUNT_P": _power(limits.num_ties)}
    weighed = {**_ROWS, "sums": _FLOATS, "maxima": _FLOATS, "inverses": _FLOATS, "floors": _FLOATS}
    penalised = {**_CHANGED, "table": _FLOATS, "table_rows": _IDS, "repetitions": _FLOATS}
    paired = {"pairs": _IDS, "values": _FLOATS, "num_pairs": "i32"}
    specs = {
        Sampling.ARGMAX: _whole("argmax", {**_ROWS, "ids": _IDS, "values": _FLOATS}, whole),
        Sampling.CHUNK_EXP_SUMS: KernelSpec.of("sampling.chunk_exp_sums", weighed, chunked),
        Sampling.FIND_TIES: _whole("find_ties", {**_ROWS, "ids": _IDS, "values": _FLOATS}, ties),
        Sampling.READ: KernelSpec.of("sampling.read", {**paired, "logits": _FLOATS}, part),
        Sampling.WRITE: KernelSpec.of("sampling.write", {**paired, "changed": _FLOATS}, part),
        COPY_ROWS: KernelSpec.of("sampling.copy_rows", _CHANGED, part),
        Sampling.PENALISE: KernelSpec.of("sampling.penalise", penalised, part),
        Sampling.APPLY_TOKEN_BITMASK: KernelSpec.of(
            "sampling.apply_token_bitmask",
            {**_CHANGED, "masks": _IDS},
            {**part, "WORDS": -(-vocab_size // 32)},
        ),
    }
    # One kernel finds any number of the largest.
    keys = {"keys": _IDS, "key_ids": _IDS, "count": "i32"}
    select = _whole("select", {**_ROWS, **keys}, whole)
    ranks = {"BLOCK": _RANK_BLOCK, "STEP": _RANK_STEP}
    order = KernelSpec.of("sampling.rank", {**keys, "values": _FLOATS, "ids": _IDS}, ranks)
    for size in sizes:
        specs |= {Sampling.top_k(size): select, rank(size): order}
    return specs, limits


def _whole(name: str, types: dict[str, str], constants: dict[str, int]) -> KernelSpec:
    """Return a kernel of which one program has a whole row."""
    return KernelSpec.of(f"sampling.{name}", types, constants, num_warps=_ROW_WARPS)


def _power(number: int) -> int:
    """Return the least power of two that is not less."""
    return 1 << (number - 1).bit_length()
