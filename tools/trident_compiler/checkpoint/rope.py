"""Rotary position embedding: what a checkpoint's config.json says about it, of every kind.

Owns the reading of `rope_parameters` (transformers 5, flat or one for each kind of layer) and of `rope_theta` with
`rope_scaling` (before): which object describes the scaling, its base and its rotated part. Never rotates anything, and
never knows a model type: what its defaults are is the family's to say.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope_kinds import KINDS, MOST, ORIGINAL, Floats, Scaling
from trident_ensemble.contract.errors import CheckpointError

_DEFAULT_THETA = 10000.0
#: The kind of layer that an old `rope_scaling` is about where kinds of layers rotate differently.
_SCALED_SECTION = "full_attention"
_THETA, _PART = "rope_theta", "partial_rotary_factor"


@dataclass(frozen=True)
class Rotary:
    """A rotary embedding: how the first features of a head are rotated by each token's position.

    Args:
        inverse_frequencies: float32 `[rotated / 2]`, radians a position; scaling applied.
        factor: of cosine and sine.
        long: the embedding for sequences that may be longer than `original_positions`; None: this one is for all.
        original_positions: the length up to which this one is right where `long` is given.
    """

    inverse_frequencies: Floats = field(repr=False, compare=False)
    factor: float = 1.0
    long: Rotary | None = None
    original_positions: int = 0

    @property
    def rotated(self) -> int:
        """Features of a head that are rotated."""
        return 2 * len(self.inverse_frequencies)

    def at(self, max_seq_len: int) -> Rotary:
        """Return the embedding for an engine whose sequences are at most so long.

        A cache keeps rotated keys, so that an engine cannot change its frequencies when one of its sequences grows.
        """
        return self.long if self.long is not None and max_seq_len > self.original_positions else self


def read_rotary(
    config: JsonConfig,
    head_dim: int,
    max_positions: int,
    *,
    section: str | None = None,
    theta: float = _DEFAULT_THETA,
    theta_key: str = "rope_theta",
    partial: float | None = None,
    rotated: int | None = None,
) -> Rotary:
    """Return the rotary embedding that config.json describes.

    The kinds are default, linear, dynamic (which is plain up to `max_positions`), llama3, yarn and longrope.

    Args:
        config: config.json.
        head_dim: size of a head.
        max_positions: the checkpoint's longest context.
        section: the key in `rope_parameters` where each kind of layer has its own, such as `sliding_attention`.
        theta: what the base is where config.json does not say.
        theta_key: where it says so outside `rope_parameters` and `rope_scaling`.
        partial: what `partial_rotary_factor` is where config.json does not say; None: the network rotates whole heads,
            and any other part is refused.
        rotated: features to rotate, whatever `partial_rotary_factor` is.

    Raises:
        CheckpointError: a kind that is not supported, or a malformed value; named by key.
    """
    parameters = _parameters(config, section)
    kind_key = "rope_type" if parameters.values.get("rope_type") is not None else "type"
    kind = parameters.values.get(kind_key) or "default"
    formula = KINDS.get(kind) if isinstance(kind, str) else None
    if formula is None:
        raise parameters.refuse(kind_key, f"this rotary scaling is not supported; {', '.join(KINDS)} are")
    base = _base(config, parameters, theta_key, theta)
    size = _rotated(config, parameters, head_dim, partial) if rotated is None else rotated
    original = _original(config if section is None else parameters) or _original(parameters)
    with np.errstate(all="ignore"):
        exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
        plain = (np.float32(1) / np.power(np.float32(base), exponents)).astype(np.float32)
        scaled = formula(Scaling(parameters, base, plain, original, max_positions))
    long = scaled.long_frequencies
    for frequencies in (scaled.frequencies, scaled.frequencies if long is None else long):
        if not (np.isfinite(frequencies).all() and (frequencies > 0).all()):
            raise CheckpointError(f"{parameters.where}: float32 cannot hold the rotary frequencies that follow from it")
    if long is None:
        return Rotary(scaled.frequencies, scaled.factor)
    return Rotary(scaled.frequencies, scaled.factor, Rotary(long, scaled.factor), original or max_positions)


def read_switch(config: JsonConfig) -> int | None:
    """Return the longest sequences, in tokens, that are rotated one way, where longer ones are rotated another way.

    It is None where all are rotated alike. Nothing else of the rotary embedding is read, and nothing of it refused.
    """
    for key in ("rope_scaling", "rope_parameters"):
        parameters = config.section(key)
        if parameters is not None and "longrope" in {parameters.values.get("rope_type"), parameters.values.get("type")}:
            return _original(config) or _original(parameters)
    return None


def _parameters(config: JsonConfig, section: str | None) -> JsonConfig:
    """Return the object that describes the scaling; the old spelling wins over the new, as in transformers."""
    nothing = JsonConfig({}, config.where)
    new, old = config.section("rope_parameters") or nothing, config.section("rope_scaling") or nothing
    if section is None:
        parameters = old if old.values else new
        for key, value in parameters.values.items():
            if isinstance(value, dict):
                raise parameters.refuse(key, "a rotary embedding for each kind of layer is not supported for this type")
        return parameters
    for key, value in new.values.items():
        if value is not None and not isinstance(value, dict):
            raise new.refuse(key, f"must lie in one object for each kind of layer, such as {section}")
    own = new.section(section) or nothing
    if old.values and section == _SCALED_SECTION:
        return JsonConfig({**own.values, **old.values}, old.where)
    return own


def _base(config: JsonConfig, parameters: JsonConfig, outer_key: str, default: float) -> float:
    owner, key = (config, outer_key) if parameters.values.get(_THETA) is None else (parameters, _THETA)
    base = owner.number(key, default, most=MOST)
    if base <= 1:
        raise owner.refuse(key, "must be greater than 1")
    return base


def _original(config: JsonConfig) -> int | None:
    return None if config.values.get(ORIGINAL) is None else config.integer(ORIGINAL, least=2)


def _rotated(config: JsonConfig, parameters: JsonConfig, head_dim: int, partial: float | None) -> int:
    owner = config if parameters.values.get(_PART) is None else parameters
    share = owner.number(_PART, 1.0 if partial is None else partial)
    if partial is None and share != 1:
        raise owner.refuse(_PART, "rotating a part of each head is not supported for this model type")
    if share == 1 and head_dim % 2:
        raise config.refuse("head_dim", f"rotary embedding needs an even head size, not {head_dim}")
    size = int(head_dim * share)
    if share > 1 or size < 2 or size % 2:
        raise owner.refuse(_PART, f"must give an even number of features out of {head_dim}; it gives {size}")
    return size
