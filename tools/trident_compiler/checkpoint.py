"""A Hugging Face checkpoint folder, opened and understood.

Owns what is read from which file: architecture, tensors, generation defaults, tokenizer files. Never converts a weight
and never runs anything that a checkpoint brings along.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from trident_backend.engine.artifact import Generation
from trident_compiler.generation_defaults import not_served, read_generation
from trident_compiler.json_config import JsonConfig
from trident_compiler.model_config import ModelConfig, read_model_config
from trident_compiler.tensor_files import TensorFiles
from trident_ensemble.errors import CheckpointError

TOKENIZER_FILE = "tokenizer.json"
#: Where transformers saves chat templates beside the default one.
_NAMED_TEMPLATES = "additional_chat_templates"
_OPTIONAL_TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; its tensors are mapped, not read.

    `not_served` are the settings of generation_config.json that change what transformers generates and are not applied.
    """

    folder: Path
    config: ModelConfig
    generation: Generation
    tensors: TensorFiles
    not_served: tuple[str, ...] = ()

    def copy_tokenizer(self, target: Path) -> None:
        """Copy the tokenizer's files into a new folder."""
        target.mkdir()
        for name in (TOKENIZER_FILE, *_OPTIONAL_TOKENIZER_FILES):
            source = self.folder / name
            if source.is_file():
                shutil.copyfile(source, target / name)
        for source in sorted((self.folder / _NAMED_TEMPLATES).glob("*.jinja")):
            (target / _NAMED_TEMPLATES).mkdir(exist_ok=True)
            shutil.copyfile(source, target / _NAMED_TEMPLATES / source.name)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read everything but the tensors' values.

    Raises:
        CheckpointError: something is missing, damaged or not supported; named, with its value.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give the folder of a Hugging Face checkpoint")
    raw = JsonConfig.read(folder / "config.json")
    config = read_model_config(raw)
    if not (folder / TOKENIZER_FILE).is_file():
        raise CheckpointError(
            f"{folder / TOKENIZER_FILE}: missing; save the tokenizer with transformers, which writes this file"
        )
    path = folder / "generation_config.json"
    generation = JsonConfig.read(path) if path.exists() else JsonConfig({}, path.name)
    defaults = read_generation(generation, raw, config.vocab_size)
    return Checkpoint(folder, config, defaults, TensorFiles(folder), not_served(generation))
