"""What the configurations of all decoders have in common.

Owns the sizes, each layer's window and rotary embedding, how a smaller model of the same kind is made, and the reading
of those from config.json. Never knows a family's names or its structure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope import Rotary
from trident_compiler.families.words import Activation

_MAX_LAYERS = 1024
#: Widths that are reduced stay multiples of this, as kernels and quantized rows like them.
_MULTIPLE = 64
_ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "relu": Activation.RELU,
    "relu2": Activation.RELU_SQUARED,
}


@dataclass(frozen=True)
class LayerKind:
    """The properties in which the layers of one decoder differ.

    Args:
        sliding_window: the tokens that attention sees, None for all.
        rotary: how queries and keys are rotated, None for not at all.
    """

    sliding_window: int | None = None
    rotary: Rotary | None = None


@dataclass(frozen=True)
class DecoderConfig:
    """The sizes of a decoder; families add what is theirs.

    Args:
        hidden_size: features between layers.
        intermediate_size: inner features of a feed-forward.
        num_heads: query heads.
        num_kv_heads: heads of keys and values; they divide the query heads.
        head_dim: size of a head.
        vocab_size: tokens.
        max_position_embeddings: the longest context, in tokens.
        tie_word_embeddings: the output projection is the table of embeddings.
        layers: one for each.
    """

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    layers: tuple[LayerKind, ...]

    @property
    def num_layers(self) -> int:
        """How many layers there are."""
        return len(self.layers)

    @property
    def rotary_switch(self) -> int | None:
        """The longest sequences, in tokens, that are rotated one way, where longer ones are rotated another way."""
        rotaries = [layer.rotary for layer in self.layers]
        return next((each.original_positions for each in rotaries if each is not None and each.long is not None), None)

    def reduced(self: Config, *, num_layers: int, vocab_size: int, factor: int) -> Config:
        """Return a smaller model of the same kind of layers, to be timed in place of this one.

        Args:
            num_layers: at most so many as this has.
            vocab_size: at most as many tokens as this knows.
            factor: divides widths and heads, about; proportions and the size of a head stay.
        """
        shorter = replace(self, vocab_size=min(vocab_size, self.vocab_size), layers=self.layers[:num_layers])
        if factor == 1:
            return shorter
        num_kv_heads = max(1, self.num_kv_heads // factor)
        group = self.num_heads // self.num_kv_heads
        return replace(
            shorter,
            hidden_size=cut(self.hidden_size, factor),
            intermediate_size=cut(self.intermediate_size, factor),
            num_kv_heads=num_kv_heads,
            num_heads=num_kv_heads * max(1, min(group, self.num_heads // factor // num_kv_heads)),
        )

    def served_at(self: Config, max_seq_len: int) -> Config:
        """Return the model as an engine serves it whose sequences have up to `max_seq_len` tokens."""
        layers = [replace(layer, rotary=layer.rotary and layer.rotary.at(max_seq_len)) for layer in self.layers]
        return replace(self, layers=tuple(layers))


Config = TypeVar("Config", bound=DecoderConfig)


def cut(size: int, factor: int) -> int:
    """Return a width that is about `factor` times smaller."""
    return min(size, max(_MULTIPLE, size // factor // _MULTIPLE * _MULTIPLE))


@dataclass(frozen=True)
class SizeKeys:
    """The keys of config.json under which a family keeps its sizes; most spell them like Llama.

    Args:
        hidden: of hidden_size.
        heads: of num_heads.
        layers: of the number of layers.
        positions: of max_position_embeddings.
        intermediate: of intermediate_size.
        kv_heads: of num_kv_heads; None: transformers reads none.
    """

    hidden: str = "hidden_size"
    heads: str = "num_attention_heads"
    layers: str = "num_hidden_layers"
    positions: str = "max_position_embeddings"
    intermediate: str = "intermediate_size"
    kv_heads: str | None = "num_key_value_heads"


@dataclass(frozen=True)
class Sizes:
    """The sizes that config.json gives, checked against each other; `DecoderConfig` has the same, under these names."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    num_layers: int
    tie_word_embeddings: bool

    def fields(self, *layers: LayerKind) -> dict[str, Any]:
        """Return the arguments of `DecoderConfig`, with these layers or with one kind for all."""
        values = {name: value for name, value in vars(self).items() if name != "num_layers"}
        return {**values, "layers": layers if len(layers) == self.num_layers else layers * self.num_layers}


def read_sizes(
    config: JsonConfig,
    keys: SizeKeys = SizeKeys(),
    *,
    positions: int | None = None,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    intermediate: int | None = None,
    tied: bool = False,
) -> Sizes:
    """Read the sizes.

    Args:
        config: config.json.
        keys: where they stand.
        positions: transformers' default of the longest context; None: it must be there.
        kv_heads: transformers' default of the heads of keys and values; None is one for each query head.
        head_dim: transformers' default of the size of a head; None is hidden size by heads.
        intermediate: the default of the inner features; None: they must be there.
        tied: transformers' default of tie_word_embeddings.

    Raises:
        CheckpointError: names the key that is missing, malformed or does not fit the others, with its value.
    """
    num_layers = config.integer(keys.layers)
    if num_layers > _MAX_LAYERS:
        raise config.refuse(keys.layers, f"more than {_MAX_LAYERS} layers")
    hidden_size = config.integer(keys.hidden)
    num_heads = config.integer(keys.heads)
    num_kv_heads = num_heads if kv_heads is None else kv_heads
    if keys.kv_heads is not None:
        num_kv_heads = config.integer(keys.kv_heads, num_kv_heads)
        if num_heads % num_kv_heads:
            raise config.refuse(keys.kv_heads, f"does not divide {keys.heads} = {num_heads}")
    return Sizes(
        hidden_size=hidden_size,
        intermediate_size=config.integer(keys.intermediate, intermediate),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=config.integer("head_dim", head_dim or max(1, hidden_size // num_heads)),
        vocab_size=config.integer("vocab_size"),
        max_position_embeddings=config.integer(keys.positions, positions),
        num_layers=num_layers,
        tie_word_embeddings=config.flag("tie_word_embeddings", default=tied),
    )


def spelling(config: JsonConfig, *keys: str) -> str:
    """Return the first of a key's spellings that config.json uses; the first of all where it uses none."""
    return next((key for key in keys if config.values.get(key) is not None), keys[0])


def read_activation(config: JsonConfig, key: str, default: str) -> Activation:
    """Return the activation that a key of config.json names.

    Raises:
        CheckpointError: one that is not known.
    """
    name = config.values.get(key) or default
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise config.refuse(key, f"not supported; {', '.join(_ACTIVATIONS)} are")
    return _ACTIVATIONS[name]


def refuse_set(config: JsonConfig, *keys: str) -> None:
    """Refuse keys that are set: to anything but null, false, and zero.

    Raises:
        CheckpointError: names the first of them, with its value.
    """
    for key in keys:
        if config.values.get(key):
            raise config.refuse(key, "not supported")


def refuse_other(config: JsonConfig, allowed: Mapping[str, object]) -> None:
    """Refuse keys that are there with another value than the one that the network computes.

    Raises:
        CheckpointError: names the first of them, with its value.
    """
    for key, value in allowed.items():
        found = config.values.get(key)
        if found is not None and found != value:
            raise config.refuse(key, f"not supported; {value!r} is")


def read_layer_types(config: JsonConfig, num_layers: int, default: tuple[str, ...]) -> tuple[str, ...]:
    """Return the kind of each layer, full_attention or sliding_attention.

    Raises:
        CheckpointError: not as many as layers, or of another kind.
    """
    kinds = config.values.get("layer_types")
    if kinds is None:
        return default
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise config.refuse("layer_types", f"must name the kind of each of the {num_layers} layers")
    for kind in kinds:
        if kind not in {"full_attention", "sliding_attention"}:
            raise config.refuse("layer_types", f"{kind!r} is not supported; full_attention and sliding_attention are")
    return tuple(kinds)


def every(period: int, num_layers: int) -> tuple[str, ...]:
    """Return the kinds of layers of which every one at a multiple of `period` attends to all, and the others do not."""
    return tuple("sliding_attention" if layer % period else "full_attention" for layer in range(1, num_layers + 1))


def read_windows(
    config: JsonConfig, num_layers: int, default: int | None, kinds: tuple[str, ...]
) -> tuple[int | None, ...]:
    """Return the window of each layer, by `sliding_window` and `layer_types`; None for one that attends to all.

    Args:
        config: config.json.
        num_layers: how many layers there are.
        default: transformers' default of sliding_window.
        kinds: its default of layer_types.

    Raises:
        CheckpointError: a layer with a window, and no size of it.
    """
    kinds = read_layer_types(config, num_layers, kinds)
    if "sliding_attention" not in kinds:
        return (None,) * num_layers
    if "sliding_window" in config.values and config.values["sliding_window"] is None:
        raise config.refuse("sliding_window", "there are layers of sliding_attention, and their window has no size")
    window = config.integer("sliding_window", default)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
