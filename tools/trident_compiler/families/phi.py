"""Phi 1, 1.5 and 2.

Attention and feed-forward share one norm and stand side by side; every layer has a bias, the output projection too; a
part of each head is rotated.

Owns what config.json means for its members, the names of their tensors and the structure of the network. Never touches
a compiler, a file or a number format.
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


@dataclass(frozen=True)
class PhiConfig(DecoderConfig):
    """A decoder of Phi.

    Args:
        epsilon: of the norms.
        activation: of the feed-forward.
        qk_norm: each query and key head is normalised.
    """

    epsilon: float
    activation: Activation
    qk_norm: bool


def read_phi_config(config: JsonConfig) -> PhiConfig:
    """Understand the config.json of a member.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    sizes = read_sizes(config, positions=2048)
    rotary = read_rotary(config, sizes.head_dim, sizes.max_position_embeddings, partial=0.5)
    return PhiConfig(
        **sizes.fields(LayerKind(None, rotary)),
        epsilon=config.number("layer_norm_eps", 1e-5),
        activation=read_activation(config, "hidden_act", "gelu_new"),
        qk_norm=config.flag("qk_layernorm"),
    )


def phi(net: Ops[Value], config: PhiConfig, weights: Weights) -> Value:
    """Write the whole network, or one device's share of it; return the logits, `[R, vocab]`."""
    parts = Parts(net, weights, config, Norm(config.epsilon, is_rms=False, has_bias=True))
    weights.skip(".rotary_emb.inv_freq")
    hidden = parts.embedding("model.embed_tokens.weight")
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        normed = parts.norm(hidden, f"{prefix}.input_layernorm")
        query, key, value = parts.qkv(normed, *(f"{attention}.{name}_proj" for name in "qkv"), bias=True)
        if config.qk_norm:
            query = parts.norm(query, f"{attention}.q_layernorm", config.head_dim)
            key = parts.norm(key, f"{attention}.k_layernorm", config.head_dim)
        attended = parts.attend(layer, parts.rotated(layer, query), parts.rotated(layer, key), value)
        output = parts.row(attended, f"{attention}.dense", parts.query_size, bias=True)
        inner = parts.plain(normed, f"{mlp}.fc1", f"{mlp}.fc2", config.activation, bias=True)
        hidden = net.add(net.add(hidden, output), inner)
    hidden = parts.norm(net.select_rows(hidden), "model.final_layernorm")
    return parts.logits(hidden, "model.embed_tokens.weight", "lm_head.weight", bias=True)


PHI = Family(("phi",), read_phi_config, phi)
