"""The layers of TensorRT that more than one kind of network is made of.

Owns how each becomes calls of the network API, of TensorRT and of TensorRT-RTX alike, and the memory of constants until
the network is compiled. Never knows what a network is for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Tensor = Any  # the modules come without usable types, and which one is known at run time alone


class TensorRTLayers:
    """Adds layers to one network, and returns their outputs.

    Args:
        trt: the module, `tensorrt` or `tensorrt_rtx`.
        network: an `INetworkDefinition`, strongly typed.
    """

    def __init__(self, trt: Any, network: Any) -> None:
        self.trt = trt
        self.network = network
        #: TensorRT reads constants where they are, until the network is compiled.
        self._memory: list[npt.NDArray[Any]] = []

    def output(self, name: str, tensor: Tensor) -> None:
        """Name a tensor and make it an output of the network."""
        tensor.name = name
        self.network.mark_output(tensor)

    def constant(self, values: npt.NDArray[Any]) -> Tensor:
        """Add a constant of a type and a shape that numpy knows."""
        self._memory.append(np.ascontiguousarray(values))
        return self.network.add_constant(values.shape, self.trt.Weights(self._memory[-1])).get_output(0)

    def packed_constant(self, values: npt.NDArray[Any], kind: Any, shape: tuple[int, ...], name: str) -> Tensor:
        """Add a constant of a type that numpy may not know.

        Args:
            values: the bits of `prod(shape)` numbers.
            kind: TensorRT's type.
            shape: of the constant.
            name: of its layer.
        """
        self._memory.append(np.ascontiguousarray(values))
        count = int(np.prod(shape, dtype=np.int64))
        layer = self.network.add_constant(shape, self.trt.Weights(kind, self._memory[-1].ctypes.data, count))
        layer.name = name
        return layer.get_output(0)

    def number(self, value: float, rank: int = 2) -> Tensor:
        """Add one float32 that broadcasts over `rank` axes."""
        return self.constant(np.full((1,) * rank, value, np.float32))

    def gather(self, table: Tensor, indices: Tensor) -> Tensor:
        """Gather along the first axis."""
        return self.network.add_gather(table, indices, 0).get_output(0)

    def elementwise(self, operation: str, first: Tensor, second: Tensor) -> Tensor:
        """Apply an `ElementWiseOperation` by its name."""
        kind = getattr(self.trt.ElementWiseOperation, operation)
        return self.network.add_elementwise(first, second, kind).get_output(0)

    def activation(self, operation: str, tensor: Tensor) -> Tensor:
        """Apply an `ActivationType` by its name."""
        return self.network.add_activation(tensor, getattr(self.trt.ActivationType, operation)).get_output(0)

    def unary(self, operation: str, tensor: Tensor) -> Tensor:
        """Apply a `UnaryOperation` by its name."""
        return self.network.add_unary(tensor, getattr(self.trt.UnaryOperation, operation)).get_output(0)

    def reduce(self, operation: str, tensor: Tensor, axis: int, *, keep: bool = False) -> Tensor:
        """Apply a `ReduceOperation` by its name along one axis, which stays with a size of 1 if `keep`."""
        kind = getattr(self.trt.ReduceOperation, operation)
        return self.network.add_reduce(tensor, kind, 1 << axis, keep).get_output(0)

    def softmax(self, tensor: Tensor) -> Tensor:
        """Take the softmax over the last axis."""
        layer = self.network.add_softmax(tensor)
        layer.axes = 1 << (len(tensor.shape) - 1)
        return layer.get_output(0)

    def largest(self, tensor: Tensor, count: int, axis: int = 1) -> tuple[Tensor, Tensor]:
        """Find the `count` largest along an axis: values and int32 ids."""
        layer = self.network.add_topk(tensor, self.trt.TopKOperation.MAX, count, 1 << axis)
        return layer.get_output(0), layer.get_output(1)

    def matmul(self, first: Tensor, second: Tensor, *, transposed: bool = False) -> Tensor:
        """Multiply matrices, the second as its transpose if `transposed`; leading axes broadcast."""
        plain = self.trt.MatrixOperation.NONE
        kind = self.trt.MatrixOperation.TRANSPOSE if transposed else plain
        return self.network.add_matrix_multiply(first, plain, second, kind).get_output(0)

    def select(self, condition: Tensor, then: Tensor, otherwise: Tensor) -> Tensor:
        """Take numbers of `then` where the condition holds, else of `otherwise`; all broadcast."""
        return self.network.add_select(condition, then, otherwise).get_output(0)

    def gather_each(self, rows: Tensor, ids: Tensor) -> Tensor:
        """Gather from each of N rows the columns that its ids `[N, n]` name."""
        layer = self.network.add_gather_v2(rows, ids, self.trt.GatherMode.ELEMENT)
        layer.axis = 1
        return layer.get_output(0)

    def slice_last(self, tensor: Tensor, begin: int, end: int) -> Tensor:
        """Slice the last axis."""
        layer = self.network.add_slice(tensor, (begin,), (end - begin,), (1,))
        layer.axes = (len(tensor.shape) - 1,)
        return layer.get_output(0)

    def transpose(self, tensor: Tensor, *axes: int) -> Tensor:
        """Put the axes in another order."""
        layer = self.network.add_shuffle(tensor)
        layer.first_transpose = self.trt.Permutation(axes)
        return layer.get_output(0)

    def cast(self, tensor: Tensor, dtype: Any) -> Tensor:
        """Cast to a type; return the tensor itself where it is of that type already."""
        return tensor if tensor.dtype == dtype else self.network.add_cast(tensor, dtype).get_output(0)

    def concatenate(self, *tensors: Tensor, axis: int = 0) -> Tensor:
        """Concatenate along an axis."""
        layer = self.network.add_concatenation(list(tensors))
        layer.axis = axis
        return layer.get_output(0)

    def reshape(self, tensor: Tensor, *sizes: int) -> Tensor:
        """Reshape to sizes of which one may be -1; 0 is the size that the axis of that number has."""
        layer = self.network.add_shuffle(tensor)
        layer.reshape_dims = sizes
        return layer.get_output(0)
