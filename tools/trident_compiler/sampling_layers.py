"""The layers of TensorRT that sampling's networks are made of.

Owns how each becomes calls of the network API, of TensorRT and of TensorRT-RTX alike. Never knows what they are for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Tensor = Any  # the modules come without usable types, and which one is known at run time alone


class SamplingLayers:
    """The few layers that the networks are made of.

    Args:
        trt: the module, `tensorrt` or `tensorrt_rtx`.
        network: empty, strongly typed.
        vocab_size: V.
    """

    def __init__(self, trt: Any, network: Any, vocab_size: int) -> None:
        self.trt = trt
        self.vocab_size = vocab_size
        self.logits = network.add_input("logits", trt.float32, (-1, vocab_size))
        self._network = network
        #: TensorRT reads constants where they are, until the network is compiled.
        self._memory: list[npt.NDArray[Any]] = []

    def input(self, name: str, dtype: Any, *widths: int) -> Tensor:
        """An input `[?, *widths]`."""
        return self._network.add_input(name, dtype, (-1, *widths))

    def output(self, name: str, tensor: Tensor) -> None:
        tensor.name = name
        self._network.mark_output(tensor)

    def rows(self) -> Tensor:
        """The rows named, `[N, V]`."""
        return self.gather(self.logits, self.input("rows", self.trt.int32))

    def column(self, name: str) -> Tensor:
        """An input of one number for each row, `[N, 1]`."""
        return self.reshape(self.input(name, self.trt.float32), -1, 1)

    def constant(self, values: npt.NDArray[Any]) -> Tensor:
        self._memory.append(np.ascontiguousarray(values))
        return self._network.add_constant(values.shape, self.trt.Weights(self._memory[-1])).get_output(0)

    def number(self, value: float) -> Tensor:
        return self.constant(np.full((1, 1), value, np.float32))

    def token_ids(self, dtype: npt.DTypeLike) -> Tensor:
        """0 to V - 1, `[1, V]`."""
        return self.constant(np.arange(self.vocab_size, dtype=dtype)[None])

    def gather(self, table: Tensor, indices: Tensor) -> Tensor:
        return self._network.add_gather(table, indices, 0).get_output(0)

    def gather_each(self, rows: Tensor, ids: Tensor) -> Tensor:
        """Of each of N rows what its ids `[N, n]` name."""
        layer = self._network.add_gather_v2(rows, ids, self.trt.GatherMode.ELEMENT)
        layer.axis = 1
        return layer.get_output(0)

    def gather_pairs(self, table: Tensor, pairs: Tensor) -> Tensor:
        return self._network.add_gather_v2(table, pairs, self.trt.GatherMode.ND).get_output(0)

    def scatter_pairs(self, table: Tensor, pairs: Tensor, values: Tensor) -> Tensor:
        return self._network.add_scatter(table, pairs, values, self.trt.ScatterMode.ND).get_output(0)

    def elementwise(self, operation: str, first: Tensor, second: Tensor) -> Tensor:
        kind = getattr(self.trt.ElementWiseOperation, operation)
        return self._network.add_elementwise(first, second, kind).get_output(0)

    def unary(self, operation: str, tensor: Tensor) -> Tensor:
        return self._network.add_unary(tensor, getattr(self.trt.UnaryOperation, operation)).get_output(0)

    def select(self, condition: Tensor, then: Tensor, otherwise: Tensor) -> Tensor:
        return self._network.add_select(condition, then, otherwise).get_output(0)

    def reduce(self, operation: str, tensor: Tensor, axis: int, *, keep: bool = False) -> Tensor:
        kind = getattr(self.trt.ReduceOperation, operation)
        return self._network.add_reduce(tensor, kind, 1 << axis, keep).get_output(0)

    def largest(self, tensor: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Along the second axis."""
        layer = self._network.add_topk(tensor, self.trt.TopKOperation.MAX, count, 1 << 1)
        return layer.get_output(0), layer.get_output(1)

    def cast(self, tensor: Tensor, dtype: Any) -> Tensor:
        return self._network.add_cast(tensor, dtype).get_output(0)

    def concatenate(self, tensors: list[Tensor]) -> Tensor:
        """Along the second axis."""
        layer = self._network.add_concatenation(tensors)
        layer.axis = 1
        return layer.get_output(0)

    def reshape(self, tensor: Tensor, *sizes: int) -> Tensor:
        layer = self._network.add_shuffle(tensor)
        layer.reshape_dims = sizes
        return layer.get_output(0)

    def columns(self, tensor: Tensor, start: int, count: int) -> Tensor:
        """Some neighbouring columns of `[N, columns]`."""
        layer = self._network.add_slice(tensor, (0, start), (0, count), (1, 1))
        shape = self._network.add_shape(tensor).get_output(0)
        num_rows = self._network.add_slice(shape, (0,), (1,), (1,)).get_output(0)
        size = self._network.add_concatenation([num_rows, self.constant(np.array([count], np.int64))])
        layer.set_input(2, size.get_output(0))
        return layer.get_output(0)
