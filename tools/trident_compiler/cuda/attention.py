"""The attention of layers: which kernels compute it, and what a layer tells them.

Owns the kinds of attention of one program. Never divides work, which the host does for each step.
"""

from __future__ import annotations

from trident_backend.engine.gpu.program import AttentionCall, AttentionKind
from trident_compiler.cuda.attention_kernels import attention_specs
from trident_compiler.cuda.builder import ProgramBuilder, number
from trident_compiler.cuda.builder import value as value_argument
from trident_compiler.cuda.operations import Target
from trident_compiler.cuda.stored_weights import StoredWeights
from trident_compiler.cuda.tensors import Tensor
from trident_compiler.families.words import Attention

#: Factors on what is in the cache, whose numbers are keys and values as they are, whatever its type.
_FACTOR = 1.0


class CudaAttention:
    """Attention of all layers of one program.

    Args:
        builder: of the program.
        target: what it is written for.
        weights: of the program.
        block_size: tokens of a block of the KV cache.
        cache_dtype: Triton's type of the KV cache.
    """

    def __init__(
        self,
        builder: ProgramBuilder,
        target: Target,
        weights: StoredWeights,
        block_size: int,
        cache_dtype: str,
    ) -> None:
        self._builder = builder
        self._target = target
        self._weights = weights
        self._block_size = block_size
        self._cache_dtype = cache_dtype

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, attention: Attention) -> Tensor:
        """Add a layer's attention: its keys and values go to the cache, then every token attends.

        Args:
            layer: which.
            query: heads.
            key: heads, as many as of `value`.
            value: heads.
            attention: what is special.

        Returns:
            wide: as many heads as of `query`, each as large as of `value`.
        """
        width, compute = query.heads * value.last, self._target.compute
        out = Tensor(value_argument(self._builder.value(width, compute, query.count)), width, compute, query.count)
        soft_cap = attention.soft_cap or 0.0
        arguments = {
            "scale": number(attention.scale),
            "softcap": number(soft_cap),
            "sinks": self._weights.vector(attention.sinks),
            "slopes": self._weights.vector(attention.alibi_slopes),
            "key_factor": number(_FACTOR),
            "value_factor": number(_FACTOR),
        }
        places = query.at.name, key.at.name, value.at.name, out.at.name
        self._builder.attend(
            self._kind(query, key, value, attention), lambda kind: AttentionCall(layer, kind, *places, arguments)
        )
        return out

    def _kind(self, query: Tensor, key: Tensor, value: Tensor, attention: Attention) -> AttentionKind:
        group = query.heads // key.heads
        specs = attention_specs(
            num_kv_heads=key.heads,
            group=group,
            head_dim=key.last,
            v_head_dim=value.last,
            block_size=self._block_size,
            compute=self._target.compute,
            cache=self._cache_dtype,
            capability=self._target.capability,
            has_window=attention.sliding_window is not None,
            has_softcap=attention.soft_cap is not None,
            has_sinks=attention.sinks is not None,
            has_alibi=attention.alibi_slopes is not None,
        )
        return AttentionKind(
            num_kv_heads=key.heads,
            group=group,
            head_dim=key.last,
            v_head_dim=value.last,
            window=attention.sliding_window or 0,
            few_rows=specs.few_rows,
            many_rows=specs.many_rows,
            write=self._builder.kernel(specs.write),
            few=self._builder.kernel(specs.few),
            many=self._builder.kernel(specs.many),
            merge_few=self._builder.kernel(specs.merge_few),
            merge_many=self._builder.kernel(specs.merge_many),
            head_parts=specs.head_parts,
        )
