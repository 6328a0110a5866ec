"""A Hugging Face checkpoint folder, opened and understood.

Owns what is read from which file: model, tensors, generation defaults, tokenizer files. Never converts a weight and
never runs anything that a checkpoint brings along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trident_compiler.checkpoint.end_of_text import EndOfText, read_end_of_text
from trident_compiler.checkpoint.generation_defaults import not_served, read_generation
from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.output_head import check_output_head
from trident_compiler.checkpoint.tensor_files import TensorFiles
from trident_compiler.checkpoint.tokenizer_files import TokenizerFiles, read_tokenizer_files
from trident_compiler.families.registry import FAMILIES, Decoder, Family, read_decoder
from trident_compiler.weights.roles import Role
from trident_ensemble.contract.errors import CheckpointError
from trident_ensemble.contract.manifest import Generation


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; its tensors are mapped, not read.

    Args:
        folder: where it lies.
        model: what config.json says, and the family that understands it.
        generation: what the engine does where a request says nothing.
        end_of_text: the tokens that end a text, and which files name them.
        tokenizer_files: the tokenizer and its templates.
        tensors: the weights.
        not_served: settings of generation_config.json that change what transformers generates and are not applied.
    """

    folder: Path
    model: Decoder
    generation: Generation
    end_of_text: EndOfText
    tokenizer_files: TokenizerFiles
    tensors: TensorFiles
    not_served: tuple[str, ...] = ()


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
    generation = JsonConfig.read_optional(folder / "generation_config.json")
    tensors = TensorFiles(folder)
    _check_head(raw, model, tensors)
    tokenizer = read_tokenizer_files(folder)
    end_of_text = read_end_of_text(
        (raw, generation), (tokenizer.config, tokenizer.ends), tokenizer.tokenizer, model.vocab_size
    )
    defaults = read_generation(generation, end_of_text.ids, model.vocab_size)
    return Checkpoint(folder, model, defaults, end_of_text, tokenizer, tensors, not_served(generation))


def _check_head(config: JsonConfig, model: Decoder, tensors: TensorFiles) -> None:
    outline = model.outline
    names = [use.name for use in outline.weights]
    head = next(use.name for use in outline.weights if use.role is Role.HEAD)
    check_output_head(config, tensors, head, names, tied=outline.is_tied)
