"""OLMo 2.

Its norms come after each branch, and those of queries and keys span all heads.
"""

from __future__ import annotations

from dataclasses import dataclass

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope import read_rotary
from trident_compiler.families.decoder_config import DecoderConfig, LayerKind, read_activation, read_sizes
from trident_compiler.families.family import Family
from trident_compiler.families.ops import Ops, Value, Weights
from trident_compiler.families.parts import Norm, Parts
from trident_compiler.families.words import Activation
from trident_compiler.weights.roles import Role


@dataclass(frozen=True)
class Olmo2Config(DecoderConfig):
    """A decoder of OLMo 2.

    Args:
        epsilon: of the norms.
        activation: of the feed-forward's gate.
        bias: attention's layers have biases.
    """

    epsilon: float
    activation: Activation
    bias: bool


def read_olmo2_config(config: JsonConfig) -> Olmo2Config:
    """Understand config.json.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    sizes = read_sizes(config, positions=2048)
    rotary = read_rotary(config, sizes.head_dim, sizes.max_position_embeddings)
    return Olmo2Config(
        **sizes.fields(LayerKind(None, rotary)),
        epsilon=config.number("rms_norm_eps", 1e-5),
        activation=read_activation(config, "hidden_act", "silu"),
        bias=config.flag("attention_bias"),
    )


def olmo2(net: Ops[Value], config: Olmo2Config, weights: Weights) -> Value:
    """Write the whole network, or one device's share of it; return the logits, `[R, vocab]`."""
    parts = Parts(net, weights, config, Norm(config.epsilon))
    hidden = parts.embedding("model.embed_tokens.weight")
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        query = parts.column(hidden, f"{attention}.q_proj", parts.query_size, bias=config.bias)
        query = parts.query_heads(parts.norm(query, f"{attention}.q_norm", parts.query_size, Role.COLUMN_BIAS))
        key = parts.column(hidden, f"{attention}.k_proj", parts.kv_size, bias=config.bias)
        key = parts.kv_heads(parts.norm(key, f"{attention}.k_norm", parts.kv_size, Role.COLUMN_BIAS))
        value = parts.kv_heads(parts.column(hidden, f"{attention}.v_proj", parts.kv_size, bias=config.bias))
        attended = parts.attend(layer, parts.rotated(layer, query), parts.rotated(layer, key), value)
        output = parts.row(attended, f"{attention}.o_proj", parts.query_size, bias=config.bias)
        hidden = net.add(hidden, parts.norm(output, f"{prefix}.post_attention_layernorm"))
        names = (f"{mlp}.gate_proj", f"{mlp}.up_proj", f"{mlp}.down_proj")
        inner = parts.gated(hidden, *names, config.activation)
        hidden = net.add(hidden, parts.norm(inner, f"{prefix}.post_feedforward_layernorm"))
    hidden = parts.norm(net.select_rows(hidden), "model.norm")
    return parts.logits(hidden, "model.embed_tokens.weight", "lm_head.weight")


OLMO2 = Family(("olmo2",), read_olmo2_config, olmo2)
