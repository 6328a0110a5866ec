"""Weights as the network takes them: values, their format, and scales where they are quantized.

Owns the choice of format for each kind of weight and keeps account of which tensors were used. Reads tensors one at a
time and lets their pages go, so that no more than the converted weights stay in memory. Never knows a compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trident_compiler import quantization
from trident_compiler.tensor_files import StoredTensor, TensorFiles
from trident_ensemble.errors import CheckpointError

#: Formats of stored values; the first three are plain, the others come with scales.
BF16, FP16, FP32, INT8, INT4 = "bf16", "fp16", "fp32", "int8", "int4"
QUANTIZED = (INT8, INT4)
_PLAIN = {"BF16": BF16, "F16": FP16, "F32": FP32}
#: Buffers that old checkpoints carry and that follow from the configuration.
_DERIVED = ".rotary_emb.inv_freq"


@dataclass(frozen=True)
class Weight:
    """One weight.

    Args:
        name: unique among all weights of a network.
        format: bf16 (values are the uint16 of the bits), fp16, fp32, int8, or int4 (two to a byte, low half first).
        shape: logical shape, `[out, in]` for a matrix.
        values: in the weight's format; maps the checkpoint where nothing had to be converted.
        scales: float32; `[out, 1]` for int8, `[out, groups]` for int4; None for plain formats.
        zero_points: uint8 `[out, groups]`, for int4 only: a value is `(stored - zero_point) * scale`.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    values: npt.NDArray[Any]
    scales: npt.NDArray[np.float32] | None = None
    zero_points: npt.NDArray[np.uint8] | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the values and what scales them."""
        return sum(part.nbytes for part in (self.values, self.scales, self.zero_points) if part is not None)


class WeightSource:
    """Hands a family the weights it asks for, checked against the shape it expects.

    Quantization spares what costs more quality than it saves: the output projection is int8 where matrices are int4,
    and the embeddings, of which a step reads a few rows only, keep a plain format, unless both are one tensor.

    Args:
        tensors: the checkpoint's.
        matrix_format: of the linear layers.
        plain_format: of what is not quantized: fp32 leaves tensors as they are stored, bf16 and fp16 turn them into
            16 bits (fp16 only where no value overflows; bf16 only from fp32).
        tied: the output projection is the table of embeddings.
        on_weight: called with the stored bytes of each tensor when it has been prepared.
    """

    def __init__(
        self,
        tensors: TensorFiles,
        matrix_format: str,
        plain_format: str,
        *,
        tied: bool,
        on_weight: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._tensors = tensors
        self._matrix_format = matrix_format
        self._plain_format = plain_format
        self._tied = tied
        self._on_weight = on_weight
        self._used: dict[str, Weight] = {}

    def matrix(self, name: str, out_size: int, in_size: int) -> Weight:
        """The `[out, in]` weight of a linear layer, in the wanted format."""
        return self._weight(name, (out_size, in_size), self._matrix_format)

    def embedding(self, name: str, vocab_size: int, hidden_size: int) -> Weight:
        """The `[vocab, hidden]` table."""
        if self._tied:
            return self.head(name, vocab_size, hidden_size)
        return self._weight(name, (vocab_size, hidden_size), self._plain_format)

    def head(self, name: str, vocab_size: int, hidden_size: int) -> Weight:
        """The `[vocab, hidden]` output projection."""
        return self._weight(
            name, (vocab_size, hidden_size), INT8 if self._matrix_format == INT4 else self._matrix_format
        )

    def vector(self, name: str, size: int) -> Weight:
        """A norm's scale or a bias, exact, as float32."""
        stored = self._stored(name, (size,))
        weight = Weight(name, FP32, (size,), quantization.to_float32(stored.values))
        return self._keep(weight, stored)

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights handed out."""
        return sum(weight.num_bytes for weight in self._used.values())

    def require_all_used(self) -> None:
        """Refuse a checkpoint with tensors that the family does not know: ignoring one would change the model.

        Raises:
            CheckpointError: names the first of them.
        """
        ignored = {"lm_head.weight"} if self._tied else set()
        extra = sorted(
            name
            for name in self._tensors
            if name not in self._used and name not in ignored and not name.endswith(_DERIVED)
        )
        if extra:
            raise CheckpointError(
                f"{extra[0]}: this tensor ({len(extra)} in all) is not part of the architecture that config.json names"
            )

    def _stored(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        stored = self._tensors.get(name)
        if stored is None:
            raise CheckpointError(f"{name}: the checkpoint has no such tensor")
        if stored.values.shape != shape:
            raise CheckpointError(
                f"{name}: its shape is {list(stored.values.shape)}, config.json asks for {list(shape)}"
            )
        return stored

    def _weight(self, name: str, shape: tuple[int, int], wanted: str) -> Weight:
        if name in self._used:
            return self._used[name]
        stored = self._stored(name, shape)
        plain = _PLAIN[stored.dtype]
        if wanted == INT4 and quantization.group_size(shape[1]) is None:
            wanted = INT8
        if wanted == INT8:
            values, scales = quantization.int8_per_channel(stored.values)
            weight = Weight(name, INT8, shape, values, scales)
        elif wanted == INT4:
            packed, scales, zero_points = quantization.int4_groups(stored.values)
            weight = Weight(name, INT4, shape, packed, scales, zero_points)
        elif wanted == FP16 and plain != FP16:
            halves = quantization.to_float16(stored.values)
            weight = (
                Weight(name, FP16, shape, halves) if halves is not None else Weight(name, plain, shape, stored.values)
            )
        elif wanted == BF16 and plain == FP32:
            weight = Weight(name, BF16, shape, quantization.to_bfloat16(stored.values))
        else:
            weight = Weight(name, plain, shape, stored.values)
        return self._keep(weight, stored)

    def _keep(self, weight: Weight, stored: StoredTensor) -> Weight:
        if weight.values is not stored.values:
            stored.release()
        self._used[weight.name] = weight
        self._on_weight(stored.values.nbytes)
        return weight


def estimated_bytes(tensors: TensorFiles, matrix_format: str, *, tied: bool) -> int:
    """About what the weights will take, known before any is read; `WeightSource` says which format goes where."""
    bits = {FP32: 32.0, BF16: 16.0, INT8: 8.1, INT4: 4.4}
    total = 0.0
    for name, tensor in tensors.items():
        if tensor.values.ndim != 2:
            total += tensor.values.size * 4
        elif matrix_format in QUANTIZED and name.endswith("embed_tokens.weight") and not tied:
            total += tensor.values.size * 2
        elif matrix_format == INT4 and (name == "lm_head.weight" or name.endswith("embed_tokens.weight")):
            total += tensor.values.size * bits[INT8] / 8
        else:
            total += tensor.values.size * bits[matrix_format] / 8
    return int(total)
