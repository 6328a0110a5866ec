"""Rotary position embedding: the inverse frequencies of a checkpoint, with its scaling applied.

Owns the reading of `rope_parameters` (transformers 5) and of `rope_theta` with `rope_scaling` (before), and the
formulas of the plain, linear and Llama 3 kinds. Never rotates anything.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from trident_compiler.checkpoint.json_config import JsonConfig

_DEFAULT_THETA = 10000.0
_SUPPORTED = ("default", "linear", "llama3")


def inverse_frequencies(config: JsonConfig, head_dim: int, max_positions: int) -> npt.NDArray[np.float32]:
    """Return the radians a position by which each pair of a head's halves is rotated.

    Args:
        config: config.json.
        head_dim: size of a head.
        max_positions: the checkpoint's longest context, which Llama 3's scaling falls back on.

    Returns:
        float32 `[head_dim / 2]`.

    Raises:
        CheckpointError: a kind of scaling that is not supported, or a malformed one.
    """
    parameters = config.section("rope_parameters")
    legacy = config.section("rope_scaling")
    section = parameters or legacy or JsonConfig({}, config.where)
    outer_theta = config.number("rope_theta", _DEFAULT_THETA)
    theta = section.number("rope_theta", outer_theta)
    kind_key = "rope_type" if section.values.get("rope_type") is not None else "type"
    kind = section.values.get(kind_key) or "default"
    if kind not in _SUPPORTED:
        raise section.refuse(kind_key, f"this rotary scaling is not supported; {', '.join(_SUPPORTED)} are")
    for where in (config, section):
        if where.number("partial_rotary_factor", 1.0) != 1.0:
            raise where.refuse("partial_rotary_factor", "rotating a part of each head is not supported")

    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    plain = (np.float32(1) / np.power(np.float32(theta), exponents)).astype(np.float32)
    if kind == "linear":
        return plain / np.float32(section.number("factor"))
    if kind == "llama3":
        original = section.integer("original_max_position_embeddings", max_positions)
        return _llama3(
            plain,
            section.number("factor"),
            section.number("low_freq_factor"),
            section.number("high_freq_factor"),
            original,
        )
    return plain


def _llama3(
    plain: npt.NDArray[np.float32], factor: float, low: float, high: float, original: int
) -> npt.NDArray[np.float32]:
    """Stretch long waves by `factor`, keep short ones, and blend those between."""
    wavelengths = 2 * math.pi / plain
    if high <= low:
        blend = (wavelengths <= original / low).astype(np.float32)
    else:
        blend = np.clip((original / wavelengths - low) / (high - low), 0, 1).astype(np.float32)
    return ((1 - blend) * plain / np.float32(factor) + blend * plain).astype(np.float32)
