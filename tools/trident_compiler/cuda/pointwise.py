"""The words of the network language that need one token and no matrix, as launches: functions of numbers, and norms.

Owns which launch each becomes, and that what the head reads of the body is gathered to its rows. Never knows a weight's
format, or what values mean.
"""

from __future__ import annotations

import math

from trident_backend.engine.gpu.program import Argument, Count, Kind, StepInput
from trident_compiler.cuda.builder import ProgramBuilder, value
from trident_compiler.cuda.operations import Activate, Product, Sum
from trident_compiler.cuda.pointwise_kernels import copy_columns_launch, numbers_launch
from trident_compiler.cuda.row_kernels import gather_launch, norm_launch
from trident_compiler.cuda.stored_weights import StoredWeights
from trident_compiler.cuda.tensors import Tensor
from trident_compiler.families.words import Activation
from trident_compiler.weights.weights import Weight

#: The logits, float32; what follows their product is computed in their place.
LOGITS = Argument(Kind.LOGITS)
#: The inputs of a step.
TOKEN_IDS = Argument(Kind.INPUT, StepInput.TOKEN_IDS.value)
POSITION_IDS = Argument(Kind.INPUT, StepInput.POSITION_IDS.value)
LOGIT_ROWS = Argument(Kind.INPUT, StepInput.LOGIT_ROWS.value)


class CudaPointwise:
    """Pointwise words and norms of one program.

    Args:
        builder: of the program.
        compute: Triton's type of activations.
        weights: of the program.
    """

    def __init__(self, builder: ProgramBuilder, compute: str, weights: StoredWeights) -> None:
        self._builder = builder
        self._compute = compute
        self._weights = weights
        self._gathered: dict[Argument, Tensor] = {}

    def activation(self, x: Tensor, kind: Activation) -> Tensor:
        x = self._here(x)
        out = self._in_place_or_new(x)
        self._builder.add(Activate(kind, x.at, out.at, x.width, x.dtype))
        return out

    def clamp(self, x: Tensor, low: float | None, high: float | None) -> Tensor:
        return self._with_numbers(x, low=low, high=high)

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = self._both(a, b)
        out = self._new(a.width, a.heads)
        self._builder.add(Product(a.at, b.at, out.at, a.width, b.width, self._compute))
        return out

    def multiply_number(self, x: Tensor, number: float) -> Tensor:
        return self._with_numbers(x, factor=number)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = self._both(a, b)
        out = self._new(a.width, a.heads)
        self._builder.add(Sum(a.at, b.at, out.at, a.width, self._compute))
        return out

    def add_number(self, x: Tensor, number: float) -> Tensor:
        return self._with_numbers(x, term=number)

    def rms_norm(self, x: Tensor, scale: Weight | None, epsilon: float, *, all_reduce: bool = False) -> Tensor:
        del all_reduce  # there is one device
        return self._normed(x, scale, None, epsilon, is_centred=False)

    def layer_norm(self, x: Tensor, scale: Weight | None, bias: Weight | None, epsilon: float) -> Tensor:
        return self._normed(x, scale, bias, epsilon, is_centred=True)

    def split_heads(self, x: Tensor, num_heads: int) -> Tensor:
        return Tensor(x.at, x.width, x.dtype, x.count, num_heads)

    def merge_heads(self, x: Tensor) -> Tensor:
        return Tensor(x.at, x.width, x.dtype, x.count)

    def slice(self, x: Tensor, begin: int, end: int) -> Tensor:
        x = self._here(x)
        heads = max(1, x.heads)
        out = self._new(heads * (end - begin), x.heads)
        self._copy(x, out, width=end - begin, x_at=begin)
        return out

    def concat(self, *parts: Tensor) -> Tensor:
        parts = tuple(self._here(part) for part in parts)
        out = self._new(sum(part.width for part in parts), parts[0].heads)
        place = 0
        for part in parts:
            self._copy(part, out, width=part.last, out_at=place)
            place += part.last
        return out

    def _normed(
        self, x: Tensor, scale: Weight | None, bias: Weight | None, epsilon: float, *, is_centred: bool
    ) -> Tensor:
        x = self._here(x)
        out = self._new(x.width, x.heads)
        norm_launch(
            self._builder,
            x.at,
            out.at,
            dim=x.last,
            epsilon=epsilon,
            dtype=x.dtype,
            heads=max(1, x.heads),
            is_centred=is_centred,
            scale=self._weights.vector(scale),
            scale_heads=_heads_of(scale, x),
            bias=self._weights.vector(bias),
            bias_heads=_heads_of(bias, x),
        )
        return out

    def _with_numbers(
        self,
        x: Tensor,
        *,
        factor: float = 1.0,
        term: float = 0.0,
        low: float | None = None,
        high: float | None = None,
    ) -> Tensor:
        x = self._here(x)
        out = self._in_place_or_new(x)
        numbers_launch(
            self._builder,
            x.at,
            out.at,
            width=x.width,
            dtype=x.dtype,
            factor=factor,
            term=term,
            low=low,
            high=high,
        )
        return out

    def _copy(self, x: Tensor, out: Tensor, *, width: int, x_at: int = 0, out_at: int = 0) -> None:
        copy_columns_launch(
            self._builder,
            x.at,
            out.at,
            width=width,
            x_row=x.last,
            out_row=out.last,
            dtype=self._compute,
            x_at=x_at,
            out_at=out_at,
            heads=max(1, x.heads),
        )

    def _new(self, width: int, heads: int = 0) -> Tensor:
        """Return a new value of activations, of as many rows as what is being written."""
        counted = self._builder.counted
        return Tensor(value(self._builder.value(width, self._compute, counted)), width, self._compute, counted, heads)

    def _in_place_or_new(self, x: Tensor) -> Tensor:
        """Return where a function of each number of x goes: the logits, which nothing else reads, stay in place."""
        return x if x.at == LOGITS else self._new(x.width, x.heads)

    def _both(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return two values of the rows that are being computed, neither of which is the logits."""
        assert a.dtype == b.dtype == self._compute, f"{a.dtype} and {b.dtype}, not {self._compute}"
        return self._here(a), self._here(b)

    def _here(self, x: Tensor) -> Tensor:
        """Return a value of the rows that are being computed: in the head those that get logits, gathered once."""
        if x.count is self._builder.counted:
            return x
        assert x.count is Count.TOKENS, "the body reads nothing of the head"
        if x.at not in self._gathered:
            self._gathered[x.at] = self._rows(x.at, LOGIT_ROWS, x.width, x.dtype)
        found = self._gathered[x.at]
        return Tensor(found.at, found.width, found.dtype, found.count, x.heads)

    def _rows(self, table: Argument, numbers: Argument, width: int, dtype: str, offset: int = 0) -> Tensor:
        """Gather rows of a table, or of a value of tokens."""
        out = self._new(width)
        gather_launch(
            self._builder,
            table,
            numbers,
            out.at,
            width=width,
            table_dtype=dtype,
            out_dtype=self._compute,
            offset=offset,
        )
        return out


def _heads_of(vector: Weight | None, x: Tensor) -> int:
    """Return how many heads a scale has numbers of their own for."""
    return 1 if vector is None or x.heads == 0 else math.prod(vector.shape) // x.last
