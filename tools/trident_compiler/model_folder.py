"""The folder of a model, opened and understood: a Hugging Face checkpoint, or a model exported to OpenVINO.

Owns what is read from which file: model, tensors, generation defaults, tokenizer files. Never converts a weight and
never runs anything that a folder brings along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from trident_compiler.checkpoint.end_of_text import EndOfText, read_end_of_text
from trident_compiler.checkpoint.exported_files import ExportedFiles, is_exported, read_exported_files
from trident_compiler.checkpoint.generation_defaults import not_served, read_generation
from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.output_head import check_output_head
from trident_compiler.checkpoint.rope import read_switch
from trident_compiler.checkpoint.tensor_files import PrefixedTensors, TensorFiles
from trident_compiler.checkpoint.tokenizer_files import TokenizerFiles, read_tokenizer_files
from trident_compiler.families.family import Decoder, Family
from trident_compiler.families.features import Feature
from trident_compiler.families.registry import FAMILIES, read_decoder
from trident_compiler.weights.roles import Role
from trident_ensemble.contract.errors import CheckpointError
from trident_ensemble.contract.manifest import Generation

#: The keys of config.json that say the longest context of a model, as families spell it.
_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")


class Model(Protocol):
    """The properties of any model that serving it needs."""

    @property
    def model_type(self) -> str:
        """The family, as config.json names it."""
        ...

    @property
    def num_layers(self) -> int:
        """Layers with attention."""
        ...

    @property
    def vocab_size(self) -> int:
        """Width of a row of logits."""
        ...

    @property
    def max_position_embeddings(self) -> int:
        """The longest context that the model is made for, in tokens."""
        ...

    @property
    def features(self) -> tuple[Feature, ...]:
        """What its network needs of an engine beyond the ordinary."""
        ...

    @property
    def rotary_switch(self) -> int | None:
        """The longest sequences, in tokens, that are rotated one way, where longer ones are rotated another way."""
        ...


@dataclass(frozen=True)
class ModelFolder:
    """An opened folder of any model.

    Args:
        folder: where it lies.
        model: what it is.
        generation: what the engine does where a request says nothing.
        end_of_text: the tokens that end a text, and which files name them.
        tokenizer_files: the tokenizer and its templates.
        not_served: settings of generation_config.json that change what transformers generates and are not applied.
    """

    folder: Path
    model: Model
    generation: Generation
    end_of_text: EndOfText
    tokenizer_files: TokenizerFiles
    _: KW_ONLY
    not_served: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint(ModelFolder):
    """An opened checkpoint; its tensors are mapped, not read.

    Args:
        model: what config.json says, and the family that understands it.
        tensors: the weights.
    """

    model: Decoder
    _: KW_ONLY
    tensors: PrefixedTensors


@dataclass(frozen=True)
class ExportedDecoder:
    """A model whose network was exported to OpenVINO.

    Args:
        model_type: of config.json.
        max_position_embeddings: the longest context, likewise.
        sliding_window: how many tokens a token attends to by config.json, in some of the layers or in all; 0 for all
            tokens.
        files: the network's.
        features: none: what a network needs is found by converting it.
        rotary_switch: as `Model` has it.
    """

    model_type: str
    max_position_embeddings: int
    sliding_window: int
    files: ExportedFiles
    features: tuple[Feature, ...] = ()
    rotary_switch: int | None = None

    @property
    def num_layers(self) -> int:
        """Layers with attention."""
        return self.files.num_layers

    @property
    def vocab_size(self) -> int:
        """Width of a row of logits."""
        return self.files.vocab_size


@dataclass(frozen=True)
class ExportedModel(ModelFolder):
    """An opened folder whose network was exported to OpenVINO.

    Args:
        model: what config.json and the network's description say.
    """

    model: ExportedDecoder


#: Either kind of folder.
Opened = TypeVar("Opened", bound=ModelFolder)
Opened_contra = TypeVar("Opened_contra", bound=ModelFolder, contravariant=True)


def open_model(folder: Path) -> Checkpoint | ExportedModel:
    """Read everything of a folder but the values of weights.

    Raises:
        CheckpointError: something is missing, damaged or not supported; named, with its value.
    """
    return _open_exported(folder) if folder.is_dir() and is_exported(folder) else open_checkpoint(folder)


def open_checkpoint(folder: Path, families: Sequence[Family[Any]] = FAMILIES) -> Checkpoint:
    """Read everything but the tensors' values.

    Args:
        folder: where the checkpoint lies.
        families: those that its model may be of.

    Raises:
        CheckpointError: something is missing, damaged or not supported; named, with its value.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give the folder of a Hugging Face checkpoint")
    raw = JsonConfig.read(folder / "config.json")
    model = read_decoder(raw, families)
    tensors = PrefixedTensors(TensorFiles(folder), model.family.base_prefix)
    _check_head(raw, model, tensors)
    text = _read_text(folder, raw, model.vocab_size)
    return Checkpoint(
        folder, model, text.generation, text.end_of_text, text.tokenizer, not_served=text.not_served, tensors=tensors
    )


def _check_head(config: JsonConfig, model: Decoder, tensors: PrefixedTensors) -> None:
    outline = model.outline
    names = [use.name for use in outline.weights]
    head = next(use.name for use in outline.weights if use.role is Role.HEAD)
    check_output_head(config, tensors, head, names, tied=outline.is_tied)


def _open_exported(folder: Path) -> ExportedModel:
    config = JsonConfig.read(folder / "config.json")
    model = _read_exported_decoder(folder, config)
    text = _read_text(folder, config, model.vocab_size)
    return ExportedModel(folder, model, text.generation, text.end_of_text, text.tokenizer, not_served=text.not_served)


def _read_exported_decoder(folder: Path, config: JsonConfig) -> ExportedDecoder:
    key = next((key for key in _POSITIONS if config.values.get(key) is not None), None)
    if key is None:
        raise CheckpointError(
            f"{config.where}: none of {', '.join(_POSITIONS)} says how long a context the model is made for; add "
            f"{_POSITIONS[0]}, in tokens"
        )
    windowed = config.values.get("sliding_window") is not None and config.flag("use_sliding_window", default=True)
    return ExportedDecoder(
        model_type=str(config.values.get("model_type", "unknown")),
        max_position_embeddings=config.integer(key),
        sliding_window=config.integer("sliding_window", least=0) if windowed else 0,
        files=read_exported_files(folder),
        rotary_switch=read_switch(config),
    )


@dataclass(frozen=True)
class _Text:
    """What the text side of any model is."""

    generation: Generation
    end_of_text: EndOfText
    tokenizer: TokenizerFiles
    not_served: tuple[str, ...]


def _read_text(folder: Path, config: JsonConfig, vocab_size: int) -> _Text:
    generation = JsonConfig.read_optional(folder / "generation_config.json")
    tokenizer = read_tokenizer_files(folder)
    end_of_text = read_end_of_text(
        (config, generation), (tokenizer.config, tokenizer.ends), tokenizer.tokenizer, vocab_size
    )
    defaults = read_generation(generation, end_of_text.ids, vocab_size)
    return _Text(defaults, end_of_text, tokenizer, not_served(generation))
