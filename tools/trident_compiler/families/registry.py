"""The model families that Trident builds.

Owns the list of families, and the choice by config.json's `model_type`. Never describes a family: each is one module,
which reads its configuration, names its tensors and their roles, and writes its network in the operations of `ops`;
nothing about a family stands anywhere else. A new one is such a module and a line in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

from trident_compiler.checkpoint.foreign_configs import check_config
from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.families.llama import LLAMA_TYPES, llama, read_llama_config
from trident_compiler.families.ops import Ops, Value, Weights
from trident_compiler.families.outline import Outline, outline


class DecoderConfig(Protocol):
    """The properties that the configuration of every family has."""

    @property
    def vocab_size(self) -> int:
        """Width of a row of logits."""
        ...

    @property
    def max_position_embeddings(self) -> int:
        """The longest context of the checkpoint, in tokens."""
        ...

    def reduced(self, *, num_layers: int, vocab_size: int, factor: int) -> DecoderConfig:
        """Return a smaller model of the same kind of layers, to be timed in place of this one.

        Args:
            num_layers: at most so many as this has.
            vocab_size: at most as many tokens as this knows.
            factor: divides widths and heads, about; proportions and the size of a head stay.
        """
        ...


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
    """

    model_types: tuple[str, ...]
    read_config: Callable[[JsonConfig], Config]
    write: WriteNetwork[Config]


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

    def reduced(self, *, num_layers: int, vocab_size: int, factor: int = 1) -> Decoder:
        """Return a smaller model of the family, as `DecoderConfig.reduced` does."""
        config = self.config.reduced(num_layers=num_layers, vocab_size=vocab_size, factor=factor)
        return Decoder(self.model_type, self.family, config)


#: Every family; the first that has a model type wins.
FAMILIES: tuple[Family[Any], ...] = (Family(LLAMA_TYPES, read_llama_config, llama),)


def read_decoder(config: JsonConfig, families: Sequence[Family[Any]] = FAMILIES) -> Decoder:
    """Return the family that `config.json` names, with the configuration read from it.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    model_type = check_config(config, [name for family in families for name in family.model_types])
    family = next(family for family in families if model_type in family.model_types)
    return Decoder(model_type, family, family.read_config(config))
