"""The model that a file holds: its config.json, and its tensors by the names of the hub.

Owns the composition of both from an architecture's tables, and the account of which stored tensors were used. Never
names an architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from trident_compiler.gguf.configs import FREQUENCIES, LONG, SHORT
from trident_compiler.gguf.entries import Table, read_table, renamed
from trident_compiler.gguf.layout import Source, Target
from trident_ensemble.contract.errors import CheckpointError

#: Config.json has what these say.
_IN_CONFIG = frozenset({FREQUENCIES, LONG, SHORT})
_MAX_LAYERS = 1024

#: What most decoders call their tables, beside the layers.
ENDS: Table = {
    "token_embd": renamed("model.embed_tokens"),
    "output_norm": renamed("model.norm"),
    "output": renamed("lm_head", optional=True),
}
ATTENTION: Table = {
    "attn_q": renamed("self_attn.q_proj"),
    "attn_k": renamed("self_attn.k_proj"),
    "attn_v": renamed("self_attn.v_proj"),
    "attn_output": renamed("self_attn.o_proj"),
}
NORMS: Table = {"attn_norm": renamed("input_layernorm"), "ffn_norm": renamed("post_attention_layernorm")}
QK_NORMS: Table = {"attn_q_norm": renamed("self_attn.q_norm"), "attn_k_norm": renamed("self_attn.k_norm")}
GATED: Table = {
    "ffn_gate": renamed("mlp.gate_proj"),
    "ffn_up": renamed("mlp.up_proj"),
    "ffn_down": renamed("mlp.down_proj"),
}


@dataclass(frozen=True)
class Model:
    """A model, described.

    Args:
        config: config.json.
        targets: the tensors of the checkpoint.
    """

    config: dict[str, Any]
    targets: tuple[Target, ...]


#: Reads a file of its architecture.
Architecture: TypeAlias = Callable[[Source], Model]


def describe(
    source: Source,
    model_type: str,
    class_name: str,
    config: Mapping[str, Any],
    layer: Callable[[int], Table] | Table,
    *,
    ends: Table = ENDS,
    prefix: str = "model.layers",
) -> Model:
    """Return the model of a file.

    Args:
        source: the file.
        model_type: as transformers knows it.
        class_name: of transformers.
        config: further keys of config.json.
        layer: the table of each layer, or of the layer of a number.
        ends: the table of what belongs to no layer.
        prefix: of the layers in the checkpoint.

    Raises:
        CheckpointError: a tensor is missing, or one is there that no table names.
    """
    num_layers = source.integer("block_count")
    if num_layers > _MAX_LAYERS:
        raise source.metadata.refuse(source.key("block_count"), f"more than {_MAX_LAYERS} layers are not read")
    targets = list(read_table(source, ends, "", ""))
    for number in range(num_layers):
        table = layer(number) if callable(layer) else layer
        targets += read_table(source, table, f"blk.{number}.", f"{prefix}.{number}.")
    used = {name for target in targets for name in target.sources}
    unused = sorted(source.file.tensors.keys() - used - _IN_CONFIG)
    if unused:
        raise CheckpointError(
            f"{source.metadata.where}: {unused[0]}: this tensor ({len(unused)} in all) is not part of a model of the "
            f"architecture {source.architecture}"
        )
    described = {"architectures": [class_name], "model_type": model_type, **config}
    return Model(described, tuple(targets))
