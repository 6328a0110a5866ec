"""NanoChat: norms without a scale, also of the embeddings and of rotated heads; it rotates the other way round.

Owns what config.json means for it, and the structure of its network. Never touches a compiler or a file.
"""

from __future__ import annotations

from dataclasses import replace

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope import read_rotary
from trident_compiler.families.decoder_config import LayerKind, read_activation, read_sizes
from trident_compiler.families.family import Family
from trident_compiler.families.ops import Ops, Value, Weights
from trident_compiler.families.parts import Norm, Parts
from trident_compiler.families.sequential import HeadNorms, SequentialConfig, embedded, output, self_attention

_CAP = "final_logit_softcapping"


def read_nanochat_config(config: JsonConfig) -> SequentialConfig:
    """Understand the config.json of NanoChat.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    sizes = read_sizes(config, positions=2048)
    rotary = read_rotary(config, sizes.head_dim, sizes.max_position_embeddings)
    backwards = replace(rotary, inverse_frequencies=-rotary.inverse_frequencies)
    bias = config.flag("attention_bias")
    return SequentialConfig(
        **sizes.fields(LayerKind(None, backwards)),
        norm=Norm(config.number("rms_norm_eps", 1e-6), has_scale=False),
        activation=read_activation(config, "hidden_act", "relu2"),
        head_norms=HeadNorms(after_rotary=True),
        qkv_bias=bias,
        output_bias=bias,
        logits_cap=None if config.values.get(_CAP, 15.0) is None else config.number(_CAP, 15.0),
    )


def nanochat(net: Ops[Value], config: SequentialConfig, weights: Weights) -> Value:
    """Write the whole network, or one device's share of it; return the logits, `[R, vocab]`."""
    parts = Parts(net, weights, config, config.norm)
    hidden = parts.norm(embedded(parts, config), "model.norm")
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        normed = parts.norm(hidden, f"{prefix}.input_layernorm")
        hidden = net.add(hidden, self_attention(parts, config, layer, normed))
        normed = parts.norm(hidden, f"{prefix}.post_attention_layernorm")
        hidden = net.add(hidden, parts.plain(normed, f"{prefix}.mlp.fc1", f"{prefix}.mlp.fc2", config.activation))
    return output(parts, config, hidden)


NANOCHAT = Family(("nanochat",), read_nanochat_config, nanochat)
