"""The vocabulary in TensorRT's network API, of TensorRT and of TensorRT-RTX alike.

Owns how each word becomes layers, and the network's inputs and outputs. No plugins: attention, rotary embedding and the
KV cache are native layers. Knows nothing of models, and never compiles or writes anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from trident_compiler import weights
from trident_compiler.quantization import E4M3_MAX
from trident_compiler.weights import Weight

Tensor = Any  # the modules come without usable types, and which one is known at run time alone


class TensorRTLowering:
    """Writes one strongly typed network. A value is an `ITensor`.

    Wide values are `[T, features]` and heads `[T, heads, 1, head_dim]`, with T = B * Q: B sequences of Q tokens each.

    Args:
        trt: the module, `tensorrt` or `tensorrt_rtx`.
        network: an empty `INetworkDefinition`.
        compute: format of activations and of the KV cache: fp16, bf16, or fp32.
        slot_len: positions in a slot of the KV cache.
        num_ranks: devices that share the network.
        by_lengths: attention is told how many positions of a slot are in use, and may leave out the others. There are
            kernels that read them all the same (NVIDIA/TensorRT-Model-Connect, pull requests 1035 and 1048), so that
            else a mask says of every position whether it is seen.
    """

    def __init__(
        self, trt: Any, network: Any, compute: str, slot_len: int, num_ranks: int = 1, *, by_lengths: bool = False
    ) -> None:
        self._trt = trt
        self._network = network
        self._types = {
            weights.FP32: trt.float32,
            weights.FP16: trt.float16,
            weights.BF16: trt.bfloat16,
            weights.INT8: trt.int8,
            weights.INT4: trt.int4,
            weights.FP8: trt.fp8,
        }
        self._compute = self._types[compute]
        self._slot_len = slot_len
        self._num_ranks = num_ranks
        self._by_lengths = by_lengths
        #: TensorRT reads constants where they are, until the network is compiled.
        self._memory: list[npt.NDArray[Any]] = []
        self._constants: dict[str, Tensor] = {}
        self._tables: dict[bytes, tuple[Tensor, Tensor]] = {}
        self._masks: dict[int, Tensor] = {}
        self._token_ids = self._input("token_ids", (-1, -1))
        self._position_ids = self._input("position_ids", (-1, -1))
        self._past_lens = self._input("past_lens", (-1,))
        self._context_lens = self._input("context_lens", (-1,))
        self._logit_rows = self._input("logit_rows", (-1,))
        self._step_shape = network.add_shape(self._token_ids).get_output(0)
        self._positions = self._reshape(self._position_ids, (-1, 1))

    def finish(self, logits: Tensor) -> None:
        """Make `logits [R, vocab]` the network's output, in float32."""
        logits = self._cast(logits, self._trt.float32)
        logits.name = "logits"
        self._network.mark_output(logits)

    def embedding(self, table: Weight) -> Tensor:
        flat = self._reshape(self._token_ids, (-1,))
        return self._cast(self._network.add_gather(self._plain(table), flat, 0).get_output(0), self._compute)

    def linear(self, x: Tensor, weight: Weight, bias: Weight | None = None, *, summed: bool = False) -> Tensor:
        product = self._float8_product(x, weight) if weight.format == weights.FP8 else self._product(x, weight)
        if summed and self._num_ranks > 1:
            product = self._collective(product, self._trt.CollectiveOperation.ALL_REDUCE, self._trt.ReduceOperation.SUM)
        return product if bias is None else self.add(product, self._vector(bias, 2))

    def gathered(self, x: Tensor) -> Tensor:
        if self._num_ranks == 1:
            return x
        part = x.shape[1]
        stacked = self._collective(x, self._trt.CollectiveOperation.ALL_GATHER, self._trt.ReduceOperation.NONE)
        # [ranks * T, part] to [T, ranks, part] to [T, features].
        shuffle = self._network.add_shuffle(stacked)
        shuffle.reshape_dims = (self._num_ranks, -1, part)
        shuffle.second_transpose = self._trt.Permutation((1, 0, 2))
        return self._reshape(shuffle.get_output(0), (-1, self._num_ranks * part))

    def rms_norm(self, x: Tensor, scale: Weight, epsilon: float) -> Tensor:
        trt, network = self._trt, self._network
        rank = len(x.shape)
        exact = self._cast(x, trt.float32)
        squares = self.multiply(exact, exact)
        mean = network.add_reduce(squares, trt.ReduceOperation.AVG, 1 << (rank - 1), True).get_output(0)
        root = network.add_unary(self.add(mean, self._number(epsilon, rank)), trt.UnaryOperation.SQRT).get_output(0)
        normed = network.add_elementwise(exact, root, trt.ElementWiseOperation.DIV).get_output(0)
        return self.multiply(self._cast(normed, self._compute), self._vector(scale, rank))

    def split_heads(self, x: Tensor, num_heads: int) -> Tensor:
        return self._reshape(x, (-1, num_heads, 1, x.shape[1] // num_heads))

    def rotary(self, x: Tensor, inverse_frequencies: npt.NDArray[np.float32]) -> Tensor:
        cosine, sine = self._rotation(inverse_frequencies)
        layer = self._network.add_rotary_embedding(x, cosine, sine, False, 0)
        layer.set_input(3, self._positions)
        return layer.get_output(0)

    def attention(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, sliding_window: int | None
    ) -> Tensor:
        trt, network = self._trt, self._network
        query = self.multiply(query, self._cast(self._number(scale, 4), self._compute))
        keys = self._cached(f"key_cache.{layer}", key)
        values = self._cached(f"value_cache.{layer}", value)
        window = min(sliding_window or self._slot_len, self._slot_len)
        masked = not self._by_lengths or window < self._slot_len - 1
        kind = trt.CausalMaskKind.NONE if masked else trt.CausalMaskKind.LOWER_RIGHT
        attention = network.add_attention_v2(
            self._by_sequence(query), keys, values, trt.AttentionNormalizationOp.SOFTMAX, kind
        )
        # Only single precision has no fused kernels; where a fused one is missing, the build says so.
        attention.decomposable = self._compute == trt.float32
        if masked:
            attention.mask = self._mask(window)
        else:
            attention.key_value_lengths = self._context_lens
        # [B, heads, Q, head_dim] to [T, heads * head_dim].
        shuffle = network.add_shuffle(attention.get_output(0))
        shuffle.first_transpose = trt.Permutation((0, 2, 1, 3))
        shuffle.reshape_dims = (-1, query.shape[1] * query.shape[3])
        return shuffle.get_output(0)

    def silu(self, x: Tensor) -> Tensor:
        sigmoid = self._network.add_activation(x, self._trt.ActivationType.SIGMOID).get_output(0)
        return self.multiply(x, sigmoid)

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        return self._network.add_elementwise(a, b, self._trt.ElementWiseOperation.PROD).get_output(0)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return self._network.add_elementwise(a, b, self._trt.ElementWiseOperation.SUM).get_output(0)

    def select_rows(self, x: Tensor) -> Tensor:
        return self._network.add_gather(x, self._logit_rows, 0).get_output(0)

    def _product(self, x: Tensor, weight: Weight) -> Tensor:
        operation = self._trt.MatrixOperation
        return self._network.add_matrix_multiply(
            x, operation.NONE, self._matrix(weight), operation.TRANSPOSE
        ).get_output(0)

    def _float8_product(self, x: Tensor, weight: Weight) -> Tensor:
        """A product of float8 values: each row of x is stretched to their whole range and the product shrunk again, so
        that nothing need be known of activations beforehand."""
        trt, network = self._trt, self._network
        exact = self._cast(x, trt.float32)
        sizes = network.add_unary(exact, trt.UnaryOperation.ABS).get_output(0)
        largest = network.add_reduce(sizes, trt.ReduceOperation.MAX, 1 << 1, True).get_output(0)
        above_zero = network.add_elementwise(largest, self._number(1e-12, 2), trt.ElementWiseOperation.MAX).get_output(
            0
        )
        scale = self.multiply(above_zero, self._number(1 / E4M3_MAX, 2))
        stretched = network.add_elementwise(exact, scale, trt.ElementWiseOperation.DIV).get_output(0)
        one = self._cast(self._constant(np.ones((), np.float32), trt.float32, ()), self._compute)
        rounded = network.add_quantize(self._cast(stretched, self._compute), one, trt.fp8).get_output(0)
        product = self._product(network.add_dequantize(rounded, one, self._compute).get_output(0), weight)
        return self._cast(self.multiply(self._cast(product, trt.float32), scale), self._compute)

    def _collective(self, x: Tensor, operation: Any, reduction: Any) -> Tensor:
        """Among all devices."""
        layer = self._network.add_dist_collective(x, operation, reduction, -1, [])
        layer.num_ranks = self._num_ranks
        return layer.get_output(0)

    def _input(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self._network.add_input(name, self._trt.int32, shape)

    def _cached(self, name: str, update: Tensor) -> Tensor:
        """Write `update [T, kv_heads, 1, head_dim]` into a cache, an input that is an output in the same memory."""
        shape = (-1, update.shape[1], self._slot_len, update.shape[3])
        cache = self._network.add_input(name, self._compute, shape)
        written = self._network.add_kv_cache_update(
            cache, self._by_sequence(update), self._past_lens, self._trt.KVCacheMode.LINEAR
        ).get_output(0)
        written.name = f"new_{name}"
        self._network.mark_output(written)
        return written

    def _by_sequence(self, heads: Tensor) -> Tensor:
        """`[T, heads, 1, head_dim]` as `[B, heads, Q, head_dim]`."""
        sizes = self._constant(np.array([heads.shape[1], heads.shape[3]], np.int64), self._trt.int64, (2,))
        shuffle = self._network.add_shuffle(heads)
        shuffle.set_input(1, self._network.add_concatenation([self._step_shape, sizes]).get_output(0))
        shuffle.second_transpose = self._trt.Permutation((0, 2, 1, 3))
        return shuffle.get_output(0)

    def _mask(self, window: int) -> Tensor:
        """`[B, 1, Q, slot_len]`: a token sees itself and the `window - 1` before it."""
        if window not in self._masks:
            trt, network = self._trt, self._network
            shuffle = network.add_shuffle(self._position_ids)
            shuffle.set_input(1, network.add_concatenation([self._step_shape, self._ones()]).get_output(0))
            shuffle.second_transpose = trt.Permutation((0, 2, 1, 3))
            own = shuffle.get_output(0)
            places = np.arange(self._slot_len, dtype=np.int32)
            first = self._constant(places + np.int32(window), trt.int32, (1, 1, 1, self._slot_len))
            last = self._constant(places - np.int32(1), trt.int32, (1, 1, 1, self._slot_len))
            recent = network.add_elementwise(first, own, trt.ElementWiseOperation.GREATER).get_output(0)
            past = network.add_elementwise(last, own, trt.ElementWiseOperation.LESS).get_output(0)
            self._masks[window] = network.add_elementwise(recent, past, trt.ElementWiseOperation.AND).get_output(0)
        return self._masks[window]

    def _ones(self) -> Tensor:
        return self._constant(np.ones(2, np.int64), self._trt.int64, (2,))

    def _rotation(self, inverse_frequencies: npt.NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        key = inverse_frequencies.tobytes()
        if key not in self._tables:
            angles = np.arange(self._slot_len, dtype=np.float32)[:, None] * inverse_frequencies[None, :]
            tables = [
                self._cast(self._constant(part(angles), self._trt.float32, angles.shape), self._compute)
                for part in (np.cos, np.sin)
            ]
            self._tables[key] = tables[0], tables[1]
        return self._tables[key]

    def _vector(self, weight: Weight, rank: int) -> Tensor:
        """A vector that broadcasts over the last of `rank` axes."""
        assert weight.format == weights.FP32
        shape = (1,) * (rank - 1) + weight.shape
        return self._cast(self._constant(weight.values, self._trt.float32, shape), self._compute)

    def _plain(self, weight: Weight) -> Tensor:
        """The constant of a weight as it is stored; one for all its uses."""
        if weight.name not in self._constants:
            constant = self._constant(weight.values, self._types[weight.format], weight.shape, weight.name)
            self._constants[weight.name] = constant
        return self._constants[weight.name]

    def _matrix(self, weight: Weight) -> Tensor:
        stored = self._plain(weight)
        if weight.scales is None:
            return self._cast(stored, self._compute)
        # One scale for each output channel, or for each block of a row: TensorRT infers the blocks from the shape.
        shape = weight.scales.shape if weight.scales.shape[1] > 1 else weight.scales.shape[:1]
        scales = self._cast(self._constant(weight.scales, self._trt.float32, shape), self._compute)
        layer = self._network.add_dequantize(stored, scales, self._compute)
        if len(shape) == 1:
            layer.axis = 0
        return layer.get_output(0)

    def _number(self, value: float, rank: int) -> Tensor:
        return self._constant(np.full((1,) * rank, value, np.float32), self._trt.float32, (1,) * rank)

    def _constant(self, values: npt.NDArray[Any], kind: Any, shape: tuple[int, ...], name: str = "") -> Tensor:
        values = np.ascontiguousarray(values)
        self._memory.append(values)
        count = int(np.prod(shape, dtype=np.int64))
        layer = self._network.add_constant(shape, self._trt.Weights(kind, values.ctypes.data, count))
        if name:
            layer.name = name
        return layer.get_output(0)

    def _cast(self, x: Tensor, kind: Any) -> Tensor:
        return x if x.dtype == kind else self._network.add_cast(x, kind).get_output(0)

    def _reshape(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        shuffle = self._network.add_shuffle(x)
        shuffle.reshape_dims = shape
        return shuffle.get_output(0)
