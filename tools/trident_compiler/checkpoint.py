"""A Hugging Face checkpoint folder, opened and understood.

Owns what is read from which file: architecture, tensors, generation defaults, tokenizer files. Never converts a weight
and never runs anything that a checkpoint brings along.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from trident_backend.engine.artifact import Generation
from trident_compiler.json_config import JsonConfig
from trident_compiler.model_config import ModelConfig, read_model_config
from trident_compiler.tensor_files import TensorFiles
from trident_ensemble.errors import CheckpointError

TOKENIZER_FILE = "tokenizer.json"
_OPTIONAL_TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
#: What transformers samples with where a checkpoint wants sampling and names no number.
_SAMPLING_TEMPERATURE, _SAMPLING_TOP_K, _SAMPLING_TOP_P = 1.0, 50, 1.0
#: Settings that change what transformers generates and that are not served, with the values that change nothing.
_NOT_SERVED: dict[str, tuple[object, ...]] = {
    "repetition_penalty": (None, 1, 1.0),
    "encoder_repetition_penalty": (None, 1, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "min_p": (None, 0, 0.0),
    "typical_p": (None, 1, 1.0),
    "epsilon_cutoff": (None, 0, 0.0),
    "eta_cutoff": (None, 0, 0.0),
    "bad_words_ids": (None, []),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "sequence_bias": (None, {}),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "forced_eos_token_id": (None,),
    "stop_strings": (None, []),
    "num_beams": (None, 1),
}


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
    not_served = tuple(
        f"{key} = {generation.values[key]}"
        for key, neutral in _NOT_SERVED.items()
        if key in generation.values and generation.values[key] not in neutral
    )
    defaults = _generation(generation, raw, config.vocab_size)
    return Checkpoint(folder, config, defaults, TensorFiles(folder), not_served)


def _generation(generation: JsonConfig, config: JsonConfig, vocab_size: int) -> Generation:
    source = generation if generation.values.get("eos_token_id") is not None else config
    ends = source.values.get("eos_token_id")
    end_ids = () if ends is None else tuple(ends) if isinstance(ends, list) else (ends,)
    for end_id in end_ids:
        if type(end_id) is not int or not 0 <= end_id < vocab_size:
            raise source.refuse("eos_token_id", f"must be token ids from 0 to {vocab_size - 1}")
    end_ids = tuple(sorted(set(end_ids)))
    if not generation.flag("do_sample"):
        return Generation(end_ids, temperature=0.0, top_k=0, top_p=1.0)
    top_p = generation.number("top_p", _SAMPLING_TOP_P)
    if top_p > 1:
        raise generation.refuse("top_p", "must be at most 1")
    return Generation(
        end_ids,
        temperature=generation.number("temperature", _SAMPLING_TEMPERATURE),
        top_k=generation.integer("top_k", _SAMPLING_TOP_K, least=0),
        top_p=top_p,
    )
