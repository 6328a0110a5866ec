"""A model family, and a model of one.

Owns the two interfaces that the rest of a build sees of a network: how it is read and written, and what it consists of.
Never describes a family.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.families.decoder_config import DecoderConfig
from trident_compiler.families.features import Feature
from trident_compiler.families.ops import Ops, Value, Weights
from trident_compiler.families.outline import Outline, outline

Config = TypeVar("Config", bound=DecoderConfig)
Config_contra = TypeVar("Config_contra", bound=DecoderConfig, contravariant=True)


class WriteNetwork(Protocol[Config_contra]):
    """Writes a family's whole network, or one device's share of it."""

    def __call__(self, net: Ops[Value], config: Config_contra, weights: Weights) -> Value:
        """Return the logits, `[R, vocab]`."""
        ...


@dataclass(frozen=True)
class Family(Generic[Config]):
    """A model family.

    Args:
        model_types: config.json's `model_type` of its members.
        read_config: understands config.json; raises CheckpointError for what the network would not compute as the
            checkpoint's authors do.
        write: writes the network.
        base_prefix: begins the names of all tensors but the output projection's; checkpoints may lack it.
        features: what its members may need of an engine.
    """

    model_types: tuple[str, ...]
    read_config: Callable[[JsonConfig], Config]
    write: WriteNetwork[Config]
    base_prefix: str = "model."
    features: tuple[Feature, ...] = ()


@dataclass(frozen=True)
class Decoder:
    """A model: a configuration, and the family that understands it.

    Args:
        model_type: of config.json.
        family: one of its types is that.
        config: the family's own.
    """

    model_type: str
    family: Family[Any]
    config: DecoderConfig

    def write(self, net: Ops[Value], weights: Weights) -> Value:
        """Write the network, or one device's share of it; return the logits, `[R, vocab]`.

        Raises:
            CheckpointError: a tensor is missing or has another shape than the configuration says.
        """
        logits: Value = self.family.write(net, self.config, weights)
        return logits

    @cached_property
    def outline(self) -> Outline:
        """What the network consists of."""
        return outline(self.write)

    @property
    def num_layers(self) -> int:
        """Layers with attention."""
        return len(self.outline.layers)

    @property
    def vocab_size(self) -> int:
        """Width of a row of logits."""
        return self.config.vocab_size

    @property
    def max_position_embeddings(self) -> int:
        """The longest context of the checkpoint, in tokens."""
        return self.config.max_position_embeddings

    @property
    def features(self) -> tuple[Feature, ...]:
        """What the network needs of an engine beyond the ordinary."""
        return self.outline.features

    @property
    def rotary_switch(self) -> int | None:
        """The longest sequences, in tokens, that are rotated one way, where longer ones are rotated another way."""
        return self.config.rotary_switch

    def reduced(self, *, num_layers: int, vocab_size: int, factor: int = 1) -> Decoder:
        """Return a smaller model of the family, as `DecoderConfig.reduced` does."""
        config = self.config.reduced(num_layers=num_layers, vocab_size=vocab_size, factor=factor)
        return Decoder(self.model_type, self.family, config)

    def served_at(self, max_seq_len: int) -> Decoder:
        """Return the model as an engine serves it whose sequences have up to `max_seq_len` tokens."""
        return Decoder(self.model_type, self.family, self.config.served_at(max_seq_len))
