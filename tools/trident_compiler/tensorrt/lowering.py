"""The network language in TensorRT's network API, of TensorRT and of TensorRT-RTX alike.

Owns how each operation of `Ops` becomes layers, and the network's inputs and outputs. No plugins: attention, rotary
embedding and the KV cache are native layers. Knows nothing of models, and never compiles or writes anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from trident_backend.engine.tensorrt import names
from trident_compiler.checkpoint.rope import Rotary
from trident_compiler.families.words import Activation, Attention
from trident_compiler.tensorrt.layers import Tensor, TensorRTLayers
from trident_compiler.tensorrt.matmul import TensorRTMatmul
from trident_compiler.weights.weights import Weight


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
        self._layers = TensorRTLayers(trt, network)
        self._matmul = TensorRTMatmul(self._layers, compute)
        self._compute = self._matmul.compute
        self._slot_len = slot_len
        self._num_ranks = num_ranks
        self._by_lengths = by_lengths
        self._tables: dict[bytes, tuple[Tensor, Tensor]] = {}
        self._masks: dict[int, Tensor] = {}
        self._token_ids = self._input(names.TOKEN_IDS, (-1, -1))
        self._position_ids = self._input(names.POSITION_IDS, (-1, -1))
        self._past_lens = self._input(names.PAST_LENS, (-1,))
        self._context_lens = self._input(names.CONTEXT_LENS, (-1,))
        self._logit_rows = self._input(names.LOGIT_ROWS, (-1,))
        self._step_shape = network.add_shape(self._token_ids).get_output(0)
        self._positions = self._layers.reshape(self._position_ids, -1, 1)

    def finish(self, logits: Tensor) -> None:
        """Make `logits [R, vocab]` the network's output, in float32."""
        self._layers.output(names.LOGITS, self._layers.cast(logits, self._trt.float32))

    def embedding(self, table: Weight) -> Tensor:
        token_ids = self._layers.reshape(self._token_ids, -1)
        return self._layers.cast(self._layers.gather(self._matmul.stored(table), token_ids), self._compute)

    def linear(self, x: Tensor, weight: Weight, bias: Weight | None = None, *, all_reduce: bool = False) -> Tensor:
        product = self._matmul.matmul(x, weight)
        if all_reduce and self._num_ranks > 1:
            product = self._collective(product, self._trt.CollectiveOperation.ALL_REDUCE, self._trt.ReduceOperation.SUM)
        return product if bias is None else self.add(product, self._matmul.vector(bias, 2))

    def all_gather(self, x: Tensor) -> Tensor:
        if self._num_ranks == 1:
            return x
        part = x.shape[1]
        stacked = self._collective(x, self._trt.CollectiveOperation.ALL_GATHER, self._trt.ReduceOperation.NONE)
        # [ranks * T, part] to [T, ranks, part] to [T, features].
        shuffle = self._network.add_shuffle(stacked)
        shuffle.reshape_dims = (self._num_ranks, -1, part)
        shuffle.second_transpose = self._trt.Permutation((1, 0, 2))
        return self._layers.reshape(shuffle.get_output(0), -1, self._num_ranks * part)

    def rms_norm(self, x: Tensor, scale: Weight | None, epsilon: float) -> Tensor:
        layers, rank = self._layers, len(x.shape)
        exact = layers.cast(x, self._trt.float32)
        mean = layers.reduce("AVG", self.multiply(exact, exact), rank - 1, keep=True)
        root = layers.unary("SQRT", self.add(mean, layers.number(epsilon, rank)))
        normed = layers.cast(layers.elementwise("DIV", exact, root), self._compute)
        return normed if scale is None else self.multiply(normed, self._matmul.vector(scale, rank))

    def split_heads(self, x: Tensor, num_heads: int) -> Tensor:
        return self._layers.reshape(x, -1, num_heads, 1, x.shape[1] // num_heads)

    def apply_rotary(self, x: Tensor, rotary: Rotary) -> Tensor:
        cosine, sine = self._rotation(rotary.inverse_frequencies)
        layer = self._network.add_rotary_embedding(x, cosine, sine, False, 0)
        layer.set_input(3, self._positions)
        return layer.get_output(0)

    def attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor, attention: Attention) -> Tensor:
        trt, network = self._trt, self._network
        query = self.multiply(query, self._layers.cast(self._layers.number(attention.scale, 4), self._compute))
        key_cache, value_cache = names.caches(layer)
        keys, values = self._cached(key_cache, key), self._cached(value_cache, value)
        window = min(attention.sliding_window or self._slot_len, self._slot_len)
        masked = not self._by_lengths or window < self._slot_len - 1
        kind = trt.CausalMaskKind.NONE if masked else trt.CausalMaskKind.LOWER_RIGHT
        fused = network.add_attention_v2(
            self._by_sequence(query), keys, values, trt.AttentionNormalizationOp.SOFTMAX, kind
        )
        # Only single precision has no fused kernels; where a fused one is missing, the build says so.
        fused.decomposable = self._compute == trt.float32
        if masked:
            fused.mask = self._mask(window)
        else:
            fused.key_value_lengths = self._context_lens
        # [B, heads, Q, head_dim] to [T, heads * head_dim].
        shuffle = network.add_shuffle(fused.get_output(0))
        shuffle.first_transpose = trt.Permutation((0, 2, 1, 3))
        shuffle.reshape_dims = (-1, query.shape[1] * query.shape[3])
        return shuffle.get_output(0)

    def activation(self, x: Tensor, kind: Activation) -> Tensor:
        assert kind is Activation.SILU
        sigmoid = self._network.add_activation(x, self._trt.ActivationType.SIGMOID).get_output(0)
        return self.multiply(x, sigmoid)

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        return self._layers.elementwise("PROD", a, b)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return self._layers.elementwise("SUM", a, b)

    def select_rows(self, x: Tensor) -> Tensor:
        return self._layers.gather(x, self._logit_rows)

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
        self._layers.output(names.updated(name), written)
        return written

    def _by_sequence(self, heads: Tensor) -> Tensor:
        """`[T, heads, 1, head_dim]` as `[B, heads, Q, head_dim]`."""
        return self._reshaped_by_sequence(heads, heads.shape[1], heads.shape[3])

    def _reshaped_by_sequence(self, x: Tensor, num_heads: int, width: int) -> Tensor:
        sizes = self._layers.constant(np.array([num_heads, width], np.int64))
        shuffle = self._network.add_shuffle(x)
        shuffle.set_input(1, self._layers.concatenate(self._step_shape, sizes))
        shuffle.second_transpose = self._trt.Permutation((0, 2, 1, 3))
        return shuffle.get_output(0)

    def _mask(self, window: int) -> Tensor:
        """`[B, 1, Q, slot_len]`: a token sees itself and the `window - 1` before it."""
        if window not in self._masks:
            layers = self._layers
            own = self._reshaped_by_sequence(self._position_ids, 1, 1)
            positions = np.arange(self._slot_len, dtype=np.int32).reshape(1, 1, 1, -1)
            recent = layers.elementwise("GREATER", layers.constant(positions + np.int32(window)), own)
            past = layers.elementwise("LESS", layers.constant(positions - np.int32(1)), own)
            self._masks[window] = layers.elementwise("AND", recent, past)
        return self._masks[window]

    def _rotation(self, inverse_frequencies: npt.NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        key = inverse_frequencies.tobytes()
        if key not in self._tables:
            angles = np.arange(self._slot_len, dtype=np.float32)[:, None] * inverse_frequencies[None, :]
            cosine, sine = (self._layers.constant(part(angles)) for part in (np.cos, np.sin))
            self._tables[key] = self._layers.cast(cosine, self._compute), self._layers.cast(sine, self._compute)
        return self._tables[key]
