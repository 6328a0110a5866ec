"""GPT-Neo.

Positions are learned; scores are not scaled; layers see all tokens or a window of them, as a pattern says.

Owns what config.json means for its members, the names of their tensors and the structure of the network. Never touches
a compiler, a file or a number format.
"""

from __future__ import annotations

from dataclasses import dataclass

from trident_compiler.checkpoint.json_config import JsonConfig, whole_number
from trident_compiler.families.decoder_config import (
    DecoderConfig,
    LayerKind,
    SizeKeys,
    read_activation,
    read_sizes,
    spelling,
)
from trident_compiler.families.family import Family
from trident_compiler.families.ops import Ops, Value, Weights
from trident_compiler.families.parts import Norm, Parts
from trident_compiler.families.words import Activation

#: Buffers that follow from the configuration.
_MASKS = (".attention.bias", ".attention.masked_bias")
_KINDS = ("global", "local")


@dataclass(frozen=True)
class GptNeoConfig(DecoderConfig):
    """A decoder of GPT-Neo.

    Args:
        epsilon: of the norms.
        activation: of the feed-forward.
    """

    epsilon: float
    activation: Activation


def read_gpt_neo_config(config: JsonConfig) -> GptNeoConfig:
    """Understand the config.json of a member.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    keys = SizeKeys(
        heads=spelling(config, "num_heads", "num_attention_heads"),
        layers=spelling(config, "num_layers", "num_hidden_layers"),
        kv_heads=None,
    )
    sizes = read_sizes(config, keys, positions=2048, intermediate=4 * config.integer(keys.hidden), tied=True)
    window = config.integer("window_size", 256)
    layers = [LayerKind(window if kind == "local" else None) for kind in _kinds(config, sizes.num_layers)]
    return GptNeoConfig(
        **sizes.fields(*layers),
        epsilon=config.number("layer_norm_epsilon", 1e-5),
        activation=read_activation(config, "activation_function", "gelu_new"),
    )


def _kinds(config: JsonConfig, num_layers: int) -> list[str]:
    """Return the kind of each layer, by a list of patterns that are repeated: `[[["global", "local"], 12]]`."""
    patterns = config.values.get("attention_types") or [[list(_KINDS), 12]]
    kinds: list[str] = []
    for entry in patterns if isinstance(patterns, list) else [None]:
        pattern, times = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        count = whole_number(times)
        if not isinstance(pattern, list) or not pattern or count is None or not 0 < count <= num_layers:
            raise config.refuse("attention_types", "must be a list of pairs of a pattern and how often it is repeated")
        if any(kind not in _KINDS for kind in pattern):
            raise config.refuse("attention_types", f"a layer must be {' or '.join(_KINDS)}")
        kinds += pattern * count
    if len(kinds) != num_layers:
        raise config.refuse("attention_types", f"gives {len(kinds)} layers, not {num_layers}")
    return kinds


def gpt_neo(net: Ops[Value], config: GptNeoConfig, weights: Weights) -> Value:
    """Write the whole network, or one device's share of it; return the logits, `[R, vocab]`."""
    parts = Parts(net, weights, config, Norm(config.epsilon, is_rms=False, has_bias=True))
    weights.skip(*_MASKS)
    hidden = parts.positioned(parts.embedding("transformer.wte.weight"), "transformer.wpe.weight")
    for layer in range(config.num_layers):
        prefix = f"transformer.h.{layer}"
        projections = (f"{prefix}.attn.attention.{name}_proj" for name in "qkv")
        heads = parts.qkv(parts.norm(hidden, f"{prefix}.ln_1"), *projections)
        attended = parts.attend(layer, *heads, scale=1.0)
        output = parts.row(attended, f"{prefix}.attn.attention.out_proj", parts.query_size, bias=True)
        hidden = net.add(hidden, output)

        names = (f"{prefix}.mlp.c_fc", f"{prefix}.mlp.c_proj")
        inner = parts.plain(parts.norm(hidden, f"{prefix}.ln_2"), *names, config.activation, bias=True)
        hidden = net.add(hidden, inner)
    hidden = parts.norm(net.select_rows(hidden), "transformer.ln_f")
    return parts.logits(hidden, "transformer.wte.weight", "lm_head.weight")


GPT_NEO = Family(("gpt_neo",), read_gpt_neo_config, gpt_neo, "transformer.")
