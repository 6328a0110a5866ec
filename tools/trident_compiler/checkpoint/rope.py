"""Rotary position embedding: the inverse frequencies of a checkpoint, with its scaling applied.

Owns the reading of `rope_parameters` (transformers 5) and of `rope_theta` with `rope_scaling` (before), and the
formulas of the plain, linear and Llama 3 kinds. Never rotates anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trident_compiler.checkpoint.json_config import JsonConfig

_DEFAULT_THETA = 10000.0
_SUPPORTED = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Rotary:
    """A rotary embedding: how a head's first features are rotated by each token's position.

    Args:
        inverse_frequencies: float32 `[rotated / 2]`, radians a position, scaling applied.
        factor: on cosine and sine.
        long: what replaces this where sequences may be longer than `original_positions`.
        original_positions: the longest sequences for which this is right; 0 is any.
    """

    inverse_frequencies: npt.NDArray[np.float32] = field(repr=False, compare=False)
    factor: float = 1.0
    long: Rotary | None = None
    original_positions: int = 0

    @property
    def rotated(self) -> int:
        """How many features of a head are rotated."""
        return 2 * len(self.inverse_frequencies)

    def at(self, max_seq_len: int) -> Rotary:
        """Return the embedding for an engine whose sequences have up to `max_seq_len` tokens."""
        return self.long if self.long is not None and max_seq_len > self.original_positions else self


def read_rotary(
    config: JsonConfig, head_dim: int, max_positions: int, *, section: str | None = None, rotated: int | None = None
) -> Rotary:
    """Return the rotary embedding of a checkpoint."""
    del section, rotated
    if head_dim % 2:
        raise config.refuse("head_dim", f"rotary embedding needs an even head size, not {head_dim}")
    return Rotary(inverse_frequencies(config, head_dim, max_positions))


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
