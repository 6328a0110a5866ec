"""Refusals of what a config.json describes and no family could serve.

Owns those that hold for every model type: other tasks than writing text, models around a language model, quantized
weights, and code that a checkpoint brings along. Never reads a size, and never knows a family.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_ensemble.contract.errors import CheckpointError

_TASK = re.compile(r"For([A-Z][A-Za-z0-9]*)$")
_LANGUAGE_MODEL = "CausalLM"
_EXTRACT = (
    "import sys; from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer; "
    'whole = AutoModelForImageTextToText.from_pretrained(sys.argv[1], dtype="auto"); '
    "part = AutoModelForCausalLM.from_config(whole.config.text_config); "
    "part.model = whole.model.language_model; part.set_output_embeddings(whole.get_output_embeddings()); "
    "part.generation_config = whole.generation_config; part.save_pretrained(sys.argv[2]); "
    "AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])"
)
_QUANTIZED = ("quantization_config", "compression_config")


def check_config(config: JsonConfig, model_types: Collection[str]) -> str:
    """Return the model type, one of `model_types`.

    Raises:
        CheckpointError: another type, another task, or a form of its weights that is not read; names key and value.
    """
    model_type = config.values.get("model_type")
    if not isinstance(model_type, str) or model_type not in model_types:
        raise _unknown(config, model_types)
    names = config.values.get("architectures") or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise config.refuse("architectures", "must be a list of names")
    tasks = [task.group(1) for task in map(_TASK.search, names) if task]
    if tasks and _LANGUAGE_MODEL not in tasks:
        problem = "a model for this task has no language-model head"
        raise config.refuse("architectures", f"{problem}; give the folder of a model that writes text (ForCausalLM)")
    for key in _QUANTIZED:
        _refuse_quantized(config, key)
    return model_type


def _unknown(config: JsonConfig, model_types: Collection[str]) -> CheckpointError:
    known = f"{', '.join(model_types)} are"
    inner = config.section("text_config")
    inner_type = inner and inner.values.get("model_type")
    if isinstance(inner_type, str) and inner_type in model_types:
        problem = f"not supported, but the language model inside is (text_config: model_type = {inner_type!r})"
        command = f"python -c {shlex.quote(_EXTRACT)} FOLDER NEW_FOLDER"
        return config.refuse("model_type", f"{problem}; save it alone, and build that: {command}")
    if inner is not None:
        return config.refuse("model_type", f"not supported, nor is text_config: model_type = {inner_type!r}; {known}")
    if config.values.get("auto_map") is not None:
        problem = f"not supported: the checkpoint brings its own code (auto_map = {config.values['auto_map']!r})"
        return config.refuse("model_type", f"{problem}, which is never run; {known}")
    return config.refuse("model_type", f"not supported; {known}")


def _refuse_quantized(config: JsonConfig, key: str) -> None:
    if config.values.get(key) is None:
        return
    section = config.section(key)
    method = section and section.values.get("quant_method")
    name = f"weights quantized by {method}" if isinstance(method, str) else "quantized weights"
    advice = "give the checkpoint that they were made from, in bf16, and quantize it with --weights int8 or int4"
    raise config.refuse(key, f"{name} are not read; {advice}")
