"""What a file's keys say of a decoder, as config.json has it.

Owns the keys that architectures share: sizes, norms, rotary positions. Never names an architecture.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trident_compiler.gguf.layout import Rows, Source
from trident_compiler.gguf.values import read_rows

#: What Llama 3.1's scaling was given in every checkpoint; a file holds the factors that follow from it alone.
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_ORIGINAL = 1.0, 4.0, 8192
_TOLERANCE = 1e-4
FREQUENCIES, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"


def head_dim(source: Source) -> int:
    """Return the size of a key's head."""
    heads = source.integer("attention.head_count")
    return source.integer("attention.key_length", max(1, source.integer("embedding_length") // heads))


def decoder(source: Source) -> dict[str, Any]:
    """Return what config.json says of the sizes of most decoders, by the names that most have."""
    heads = source.integer("attention.head_count")
    return {
        "vocab_size": source.tensor("token_embd.weight").shape[0],
        "hidden_size": source.integer("embedding_length"),
        "intermediate_size": source.integer("feed_forward_length"),
        "num_hidden_layers": source.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": source.integer("attention.head_count_kv", heads),
        "head_dim": head_dim(source),
        "max_position_embeddings": source.integer("context_length"),
        "tie_word_embeddings": not source.has("output.weight"),
        "rope_parameters": rotary(source),
    }


def rms_norm(source: Source) -> dict[str, Any]:
    """Return the least variance of norms without a mean."""
    return {"rms_norm_eps": source.number("attention.layer_norm_rms_epsilon")}


def layer_norm(source: Source, key: str = "layer_norm_eps") -> dict[str, Any]:
    """Return the least variance of norms with a mean, by the name that the family has for it."""
    return {key: source.number("attention.layer_norm_epsilon")}


def rotary(source: Source, *, partial: bool = False) -> dict[str, Any]:
    """Return `rope_parameters`: the base, the scaling, and the share of each head that is rotated where not all is.

    Raises:
        CheckpointError: a kind of scaling that is not known, or factors that no known scaling gives.
    """
    theta = source.number("rope.freq_base", 10000.0)
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if partial:
        parameters["partial_rotary_factor"] = source.integer("rope.dimension_count") / head_dim(source)
    if source.has(LONG) or source.has(SHORT):
        return parameters | _longrope(source)
    if source.has(FREQUENCIES):
        return parameters | _llama3(source, theta)
    kind = source.metadata.values.get(source.key("rope.scaling.type"), "none")
    if kind == "linear" or (kind == "none" and source.has_key("rope.scale_linear")):
        factor = source.number("rope.scaling.factor", source.number("rope.scale_linear", 1.0))
        return parameters if factor == 1 else parameters | {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return parameters | _yarn(source)
    if kind != "none":
        raise source.metadata.refuse(source.key("rope.scaling.type"), "not known; none, linear, yarn and longrope are")
    return parameters


def _yarn(source: Source) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": source.number("rope.scaling.factor"),
        "original_max_position_embeddings": source.integer("rope.scaling.original_context_length"),
    }
    for name, key in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
        if source.has_key(f"rope.scaling.{key}"):
            parameters[name] = source.number(f"rope.scaling.{key}")
    if source.has_key("rope.scaling.yarn_attn_factor"):
        parameters["attention_factor"] = source.number("rope.scaling.yarn_attn_factor")
    return parameters


def _longrope(source: Source) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "long_factor": _vector(source, LONG),
        "short_factor": _vector(source, SHORT),
        "original_max_position_embeddings": source.integer("rope.scaling.original_context_length"),
    }


def _llama3(source: Source, theta: float) -> dict[str, Any]:
    """Find the scaling that a file's factors follow from: each frequency is divided by one."""
    factors = np.array(_vector(source, FREQUENCIES))
    factor = float(f"{factors.max():.6g}")
    if np.abs(factors - 1).max() < _TOLERANCE:
        return {}
    wavelengths = 2 * math.pi * theta ** (np.arange(len(factors)) / len(factors))
    low, high = _LLAMA3_ORIGINAL / _LLAMA3_LOW, _LLAMA3_ORIGINAL / _LLAMA3_HIGH
    blend = (_LLAMA3_ORIGINAL / wavelengths - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW)
    expected = np.where(wavelengths < high, 1, np.where(wavelengths > low, factor, 1 / ((1 - blend) / factor + blend)))
    if np.abs(factors / expected - 1).max() > _TOLERANCE:
        raise source.refuse(FREQUENCIES, "its factors are not those of Llama 3's scaling, which alone is known")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LLAMA3_LOW,
        "high_freq_factor": _LLAMA3_HIGH,
        "original_max_position_embeddings": _LLAMA3_ORIGINAL,
    }


def _vector(source: Source, name: str) -> list[float]:
    tensor = source.tensor(name)
    if len(tensor.shape) != 1 or tensor.row_length > head_dim(source):
        raise source.refuse(name, "must have a factor for each pair of a head's values")
    return [float(str(value)) for value in read_rows(tensor, Rows(name)).ravel()]
