"""Reads a network that was written with TensorRT's network API into a `Program`.

Owns which properties of which layer count, and remembers what a network does not give back: constants in formats that
numpy lacks, and what a collective does. Never evaluates anything. Any module with TensorRT's API will do.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tests.tensorrt.number_formats import INT4, STORAGE, Array
from tests.tensorrt.program import Program, Step, TensorInfo
from trident_ensemble.contract.errors import EngineError

_LAYERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ACTIVATION": ("IActivationLayer", ("type", "alpha", "beta")),
    "CAST": ("ICastLayer", ("to_type",)),
    "CONCATENATION": ("IConcatenationLayer", ("axis",)),
    "CUMULATIVE": ("ICumulativeLayer", ("op", "exclusive", "reverse")),
    "DEQUANTIZE": ("IDequantizeLayer", ("axis",)),
    "ELEMENTWISE": ("IElementWiseLayer", ("op",)),
    "FILL": ("IFillLayer", ("operation", "shape", "alpha", "beta")),
    "GATHER": ("IGatherLayer", ("axis", "mode", "num_elementwise_dims")),
    "IDENTITY": ("IIdentityLayer", ()),
    "KV_CACHE_UPDATE": ("IKVCacheUpdateLayer", ("cache_mode", "update_form")),
    "MATRIX_MULTIPLY": ("IMatrixMultiplyLayer", ("op0", "op1")),
    "ONE_HOT": ("IOneHotLayer", ("axis",)),
    "QUANTIZE": ("IQuantizeLayer", ("axis",)),
    "REDUCE": ("IReduceLayer", ("op", "axes", "keep_dims")),
    "ROTARY_EMBEDDING": ("IRotaryEmbeddingLayer", ("interleaved", "rotary_embedding_dim")),
    "SCATTER": ("IScatterLayer", ("axis", "mode")),
    "SELECT": ("ISelectLayer", ()),
    "SHAPE": ("IShapeLayer", ()),
    "SHUFFLE": ("IShuffleLayer", ("first_transpose", "reshape_dims", "second_transpose", "zero_is_placeholder")),
    "SLICE": ("ISliceLayer", ("start", "shape", "stride", "axes", "mode")),
    "SOFTMAX": ("ISoftMaxLayer", ("axes",)),
    "SQUEEZE": ("ISqueezeLayer", ()),
    "TOPK": ("ITopKLayer", ("op", "k", "axes")),
    "UNARY": ("IUnaryLayer", ("op",)),
    "UNSQUEEZE": ("IUnsqueezeLayer", ()),
}
_ATTENTION = ("norm_op", "causal_kind", "query_form", "key_value_form")


def weights_class(trt: Any) -> Any:
    """`trt.Weights` that also knows its array; give it to whoever writes constants from addresses.

    Args:
        trt: the real module.
    """

    class Weights(trt.Weights):  # type: ignore[misc]
        """As the real one: of an array, or of a `DataType`, an address and a number of values."""

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.array = args[0] if len(args) == 1 and isinstance(args[0], np.ndarray) else None
            if len(args) == 3:
                kind, address, count = args
                stored = np.dtype(STORAGE[kind.name])
                num_bytes = (count + 1) // 2 if kind.name == INT4 else count * stored.itemsize
                memory = (ctypes.c_uint8 * num_bytes).from_address(address)
                self.array = np.frombuffer(memory, stored)

    return Weights


class RecordingModule:
    """A TensorRT module whose `Weights` remember their arrays; all else is the module's own."""

    def __init__(self, trt: Any) -> None:
        self._trt = trt
        self.Weights = weights_class(trt)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trt, name)


class RecordingNetwork:
    """Stands for an `INetworkDefinition` while it is written; all but remembering is the network's own.

    Args:
        network: the real one; it is what a builder must be given.
    """

    def __init__(self, network: Any) -> None:
        self.network = network
        #: By the number of the layer. The arrays are the ones that were handed over, not copies.
        self.constants: dict[int, Array] = {}
        self.collectives: dict[int, dict[str, Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    def add_constant(self, shape: Sequence[int], weights: Any) -> Any:
        layer = self.network.add_constant(shape, weights)
        array = weights if isinstance(weights, np.ndarray) else getattr(weights, "array", None)
        if array is not None:
            self.constants[self.network.num_layers - 1] = array
        return layer

    def add_dist_collective(self, tensor: Any, operation: Any, reduction: Any, root: Any, groups: Any) -> Any:
        layer = self.network.add_dist_collective(tensor, operation, reduction, root, groups)
        self.collectives[self.network.num_layers - 1] = {"operation": operation.name, "reduction": reduction.name}
        return layer


def record(trt: Any, network: Any, constants: Mapping[str, Array] | None = None) -> Program:
    """The network as plain data. Its constants are copied.

    Args:
        trt: the module whose classes its layers have.
        network: an `INetworkDefinition`, or a `RecordingNetwork` around it.
        constants: arrays as they lie in memory by their layer's name, where the network was written without a
            `RecordingNetwork` and does not give them back (BF16, FP8, INT4).

    Raises:
        EngineError: a layer or a constant that cannot be read; it is named.
    """
    return _Reader(trt, network, constants or {}).read()


class _Reader:
    def __init__(self, trt: Any, network: Any, registry: Mapping[str, Array]) -> None:
        self._trt = trt
        self._network = network
        self._remembered = network if isinstance(network, RecordingNetwork) else RecordingNetwork(network)
        self._registry = registry
        self._tensors: dict[str, TensorInfo] = {}
        self._constants: dict[str, Array] = {}
        self._steps: list[Step] = []
        #: Inputs and attributes of attentions, by the tensor that joins their two layers.
        self._attentions: dict[str, tuple[tuple[str | None, ...], dict[str, Any]]] = {}

    def read(self) -> Program:
        inputs = self._names(self._network.get_input(i) for i in range(self._network.num_inputs))
        for number in range(self._network.num_layers):
            self._read_layer(number, self._network.get_layer(number))
        outputs = self._names(self._network.get_output(i) for i in range(self._network.num_outputs))
        present = tuple(name for name in inputs if name), tuple(name for name in outputs if name)
        return Program(self._tensors, *present, tuple(self._steps), self._constants).in_order()

    def _read_layer(self, number: int, layer: Any) -> None:
        # Some layers have a property `type` of their own.
        operation = self._trt.ILayer.type.__get__(layer).name
        inputs = self._names(layer.get_input(i) for i in range(layer.num_inputs))
        outputs = self._names(layer.get_output(i) for i in range(layer.num_outputs))
        if operation == "CONSTANT":
            self._constants[str(outputs[0])] = self._constant(number, layer, str(outputs[0]))
            return
        attributes: dict[str, Any] = {}
        if operation == "ATTENTION_INPUT":
            layer.__class__ = self._trt.IAttentionInputLayer
            self._attentions[str(outputs[0])] = self._attention(layer.attention, inputs)
            return
        if operation == "ATTENTION_OUTPUT":
            operation = "ATTENTION"
            inputs, attributes = self._attentions[str(inputs[0])]
        elif operation == "DIST_COLLECTIVE":
            attributes = self._collective(number, layer)
        elif operation in _LAYERS:
            class_name, names = _LAYERS[operation]
            layer.__class__ = getattr(self._trt, class_name)
            attributes = {name: _plain(getattr(layer, name)) for name in names}
            if operation == "KV_CACHE_UPDATE":
                inputs = (*inputs[:3], *self._names([layer.update_lengths]))
        else:
            raise EngineError(f"layer {layer.name!r} is a {operation}, which the recorder does not know")
        self._steps.append(Step(operation, layer.name, inputs, tuple(str(name) for name in outputs), attributes))

    def _attention(self, attention: Any, inputs: tuple[str | None, ...]) -> tuple[Any, dict[str, Any]]:
        if attention.normalization_quantize_scale is not None:
            raise EngineError(
                f"attention {attention.name!r} quantizes its normalization: the recorder does not know it"
            )
        optional = self._names([attention.mask, attention.query_lengths, attention.key_value_lengths])
        return (*inputs[:3], *optional), {name: _plain(getattr(attention, name)) for name in _ATTENTION}

    def _collective(self, number: int, layer: Any) -> dict[str, Any]:
        remembered = self._remembered.collectives.get(number)
        if remembered is None:
            raise EngineError(f"layer {layer.name!r} does not say what it does: write it through a RecordingNetwork")
        return {**remembered, "num_ranks": layer.num_ranks}

    def _constant(self, number: int, layer: Any, tensor: str) -> Array:
        layer.__class__ = self._trt.IConstantLayer
        array = self._remembered.constants.get(number, self._registry.get(layer.name))
        if array is None:
            array = layer.weights
        info = self._tensors[tensor]
        if not isinstance(array, np.ndarray):
            raise EngineError(
                f"constant {layer.name!r} is {info.kind}, which TensorRT does not give back: "
                "write it through a RecordingNetwork or name its array"
            )
        array = np.array(array, order="C").view(STORAGE[info.kind])
        return array if info.kind == INT4 else array.reshape(info.shape)

    def _names(self, tensors: Iterable[Any]) -> tuple[str | None, ...]:
        return tuple(None if tensor is None else self._name(tensor) for tensor in tensors)

    def _name(self, tensor: Any) -> str:
        if tensor.name not in self._tensors:
            try:
                self._tensors[tensor.name] = TensorInfo(tensor.name, tensor.dtype.name, tuple(tensor.shape))
            except RuntimeError as error:
                raise EngineError(f"tensor {tensor.name!r}: TensorRT refuses the layer that makes it") from error
        return str(tensor.name)


def _plain(value: Any) -> Any:
    """A property's value for JSON."""
    if value is None or isinstance(value, bool | int | float):
        return value
    name = getattr(value, "name", None)
    return name if isinstance(name, str) else [int(part) for part in value]
