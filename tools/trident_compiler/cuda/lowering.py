"""The network language as launches of kernels of our own.

Owns which operations of a program stand for each word of `Ops`, with the modules beside it that own attention, experts,
weights and what is pointwise. Knows nothing of models, and never compiles or writes anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trident_backend.engine.gpu.program import Argument, Count
from trident_compiler.checkpoint.rope import Rotary
from trident_compiler.cuda.attention import CudaAttention
from trident_compiler.cuda.builder import ProgramBuilder
from trident_compiler.cuda.builder import weight as weight_argument
from trident_compiler.cuda.experts import CudaExperts
from trident_compiler.cuda.operations import Linear, Target
from trident_compiler.cuda.pointwise import LOGITS, POSITION_IDS, TOKEN_IDS, CudaPointwise
from trident_compiler.cuda.row_kernels import rotate_launch
from trident_compiler.cuda.stored_weights import StoredWeights
from trident_compiler.cuda.tensors import Tensor
from trident_compiler.families.words import Attention, Experts, Gating, Routing
from trident_compiler.weights.weights import Weight


@dataclass(frozen=True)
class NetworkSizes:
    """The facts of a network that the order and the memory of its launches follow from.

    Args:
        num_layers: the head begins behind the last one's attention.
        vocab_size: width of the logits.
        max_seq_len: positions of a sequence, at most.
        block_size: tokens of a block of the KV cache.
        cache_dtype: Triton's type of the KV cache.
    """

    num_layers: int
    vocab_size: int
    max_seq_len: int
    block_size: int
    cache_dtype: str


class CudaLowering(CudaPointwise):
    """Writes one program. A value is a `Tensor`.

    Args:
        builder: of the program.
        target: what it is written for.
        sizes: of the network.
        release: is told of each weight that has been written.
    """

    def __init__(
        self,
        builder: ProgramBuilder,
        target: Target,
        sizes: NetworkSizes,
        release: Callable[[Weight], None] = lambda _: None,
    ) -> None:
        weights = StoredWeights(builder, release)
        super().__init__(builder, target.compute, weights)
        self._target = target
        self._sizes = sizes
        self._attention = CudaAttention(builder, target, weights, sizes.block_size, sizes.cache_dtype)
        self._experts = CudaExperts(builder, target, weights)
        self._tables: dict[tuple[bytes, float], tuple[Argument, Argument]] = {}
        self._selects = False

    def finish(self, logits: Tensor) -> None:
        """Make sure that the launches end with the logits."""
        assert logits.at == LOGITS, "the network ends with the product that gives the logits"

    def embedding(self, table: Weight) -> Tensor:
        return self._looked_up(table, TOKEN_IDS)

    def position_embedding(self, table: Weight, offset: int = 0) -> Tensor:
        return self._looked_up(table, POSITION_IDS, offset)

    def linear(self, x: Tensor, weight: Weight, bias: Weight | None = None, *, all_reduce: bool = False) -> Tensor:
        del all_reduce  # there is one device
        # The logits are the one product that is not rounded.
        if self._selects and weight.shape[0] == self._sizes.vocab_size:
            x = self._here(x)
            return self._multiplied(x, weight, bias, Tensor(LOGITS, weight.shape[0], "fp32", x.count))
        return self._multiplied(x, weight, bias, self._new(weight.shape[0]))

    def head_linear(self, x: Tensor, weight: Weight) -> Tensor:
        num_heads, out_size, _ = weight.shape
        return self._multiplied(x, weight, None, self._new(num_heads * out_size, num_heads))

    def all_gather(self, x: Tensor) -> Tensor:
        return x

    def apply_rotary(self, x: Tensor, rotary: Rotary) -> Tensor:
        assert self._builder.counted is Count.TOKENS, "positions are of tokens"
        cosines, sines = self._rotation(rotary)
        out = self._new(x.width, x.heads)
        rotate_launch(
            self._builder,
            x.at,
            out.at,
            positions=POSITION_IDS,
            cosines=cosines,
            sines=sines,
            heads=x.heads,
            dim=x.last,
            rotated=rotary.rotated,
            dtype=x.dtype,
        )
        return out

    def attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor, attention: Attention) -> Tensor:
        out = self._attention.attend(layer, query, key, value, attention)
        if layer == self._sizes.num_layers - 1:
            self._builder.begin_head()
        return out

    def experts(self, x: Tensor, logits: Tensor, routing: Routing, experts: Experts, gating: Gating[Tensor]) -> Tensor:
        return self._experts.mix(self._here(x), self._here(logits), routing, experts, gating)

    def select_rows(self, x: Tensor) -> Tensor:
        self._selects = True
        return x

    def _looked_up(self, table: Weight, numbers: Argument, offset: int = 0) -> Tensor:
        assert self._builder.counted is Count.TOKENS, "ids and positions are of tokens"
        values, dtype = self._weights.table(table)
        return self._rows(values, numbers, table.shape[1], dtype, offset)

    def _multiplied(self, x: Tensor, weight: Weight, bias: Weight | None, out: Tensor) -> Tensor:
        assert x.dtype == self._target.compute, f"{x.dtype}, not {self._target.compute}"
        stored = self._weights.matrix(weight)
        self._builder.add(
            Linear(
                self._target,
                stored.matrix,
                self._here(x).at,
                stored.values,
                out.at,
                out.dtype,
                stored.scales,
                self._weights.vector(bias),
            )
        )
        return out

    def _rotation(self, rotary: Rotary) -> tuple[Argument, Argument]:
        """Return the tables of cosines and sines, float32 `[max_seq_len, rotated / 2]`."""
        frequencies, factor = rotary.inverse_frequencies, np.float32(rotary.factor)
        key = frequencies.tobytes(), rotary.factor
        if key not in self._tables:
            angles = np.arange(self._sizes.max_seq_len, dtype=np.float32)[:, None] * frequencies[None, :]
            cosines, sines = (
                weight_argument(
                    self._builder.weight(f"rotary {name} {len(self._tables)}", part(angles) * factor, "fp32")
                )
                for name, part in (("cosines", np.cos), ("sines", np.sin))
            )
            self._tables[key] = cosines, sines
        return self._tables[key]
