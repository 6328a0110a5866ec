"""Turns what a client asked for into a sequence, or says what is wrong with it.

Owns the bounds of every field of a request to the core and the defaults of those left out. Pure: knows no tensor type.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from typing import Any

from trident_backend.engine.artifact import Generation
from trident_backend.engine.protocol import EngineSpec
from trident_backend.sequence import SamplingParams, Sequence
from trident_ensemble import tensors
from trident_ensemble.errors import RequestError


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Refuse a request parameter nobody knows: over HTTP's generate endpoints a misspelt field becomes one.

    Raises:
        RequestError: naming it.
    """
    for name in parameters:
        if name not in tensors.KNOWN_PARAMETERS:
            raise RequestError(name, f"unknown field; known are {', '.join(spec.name for spec in tensors.CORE_INPUTS)}")


def parse_request(
    sequence_id: int, fields: Mapping[str, Any], spec: EngineSpec, defaults: Generation, now: float
) -> Sequence:
    """Build the sequence of one request.

    Args:
        sequence_id: the core's own number for it.
        fields: by tensor name: `input_ids` a list of ints, every other a scalar, strings as bytes; absent ones take
            their default.
        spec: the engine's limits.
        defaults: the checkpoint's generation settings.
        now: when the request came, in seconds of the core's clock.

    Raises:
        RequestError: naming the field and the limit it breaks.
    """
    token_ids = _token_ids(fields, spec)
    if tensors.MAX_TOKENS.name not in fields:
        raise RequestError(tensors.MAX_TOKENS.name, "is missing; say how many tokens to generate at most")
    max_tokens = int(fields[tensors.MAX_TOKENS.name])
    if max_tokens < 1:
        raise RequestError(tensors.MAX_TOKENS.name, f"must be at least 1, not {max_tokens}")
    if len(token_ids) + max_tokens > spec.max_seq_len:
        raise RequestError(
            tensors.MAX_TOKENS.name,
            f"{max_tokens} after a prompt of {len(token_ids)} tokens is too large: the engine holds {spec.max_seq_len} "
            f"tokens a sequence, so at most {spec.max_seq_len - len(token_ids)} here",
        )
    return Sequence(
        sequence_id=sequence_id,
        token_ids=token_ids,
        num_prompt_tokens=len(token_ids),
        max_tokens=max_tokens,
        sampling=_sampling(fields, defaults),
        end_ids=_end_ids(fields, spec, defaults),
        arrived_at=now,
        deadline=now + _timeout_seconds(fields),
        priority=_priority(fields),
        tenant=_label(fields, tensors.TENANT.name),
        cache_salt=_label(fields, tensors.CACHE_SALT.name),
        reuse_cache=bool(fields.get(tensors.REUSE_CACHE.name, True)),
    )


def _token_ids(fields: Mapping[str, Any], spec: EngineSpec) -> list[int]:
    name = tensors.INPUT_IDS.name
    token_ids: list[int] = fields.get(name, [])
    if not token_ids:
        raise RequestError(name, "must hold at least one token")
    if len(token_ids) >= spec.max_seq_len:
        raise RequestError(
            name, f"a prompt of {len(token_ids)} tokens is too long: the engine's max_seq_len is {spec.max_seq_len}"
        )
    if min(token_ids) < 0 or max(token_ids) >= spec.vocab_size:
        raise RequestError(name, f"every id must be from 0 to {spec.vocab_size - 1}")
    return token_ids


def _sampling(fields: Mapping[str, Any], defaults: Generation) -> SamplingParams:
    top_k = int(fields.get(tensors.TOP_K.name, defaults.top_k))
    if top_k < 0:
        raise RequestError(tensors.TOP_K.name, f"must be 0 (keep all) or more, not {top_k}")
    top_p = float(fields.get(tensors.TOP_P.name, defaults.top_p))
    if not 0 < top_p <= 1:
        raise RequestError(tensors.TOP_P.name, f"must be above 0 and at most 1, not {top_p}")
    temperature = float(fields.get(tensors.TEMPERATURE.name, defaults.temperature))
    if not (math.isfinite(temperature) and temperature >= 0):
        raise RequestError(tensors.TEMPERATURE.name, f"must be 0 (greedy) or more, not {temperature}")
    asks_to_sample = tensors.TOP_K.name in fields or tensors.TOP_P.name in fields
    if asks_to_sample and tensors.TEMPERATURE.name not in fields and temperature == 0:
        temperature = 1.0
    seed = int(fields.get(tensors.SEED.name, secrets.randbits(64)))
    return SamplingParams(temperature, top_k, top_p, seed=seed)


def _end_ids(fields: Mapping[str, Any], spec: EngineSpec, defaults: Generation) -> frozenset[int]:
    end_id = int(fields.get(tensors.END_ID.name, -1))
    if not -1 <= end_id < spec.vocab_size:
        raise RequestError(tensors.END_ID.name, f"must be a token id from 0 to {spec.vocab_size - 1}, or -1 for none")
    if fields.get(tensors.IGNORE_EOS.name, False):
        return frozenset()
    return frozenset(defaults.end_ids) | ({end_id} if end_id >= 0 else frozenset())


def _timeout_seconds(fields: Mapping[str, Any]) -> float:
    name = tensors.TIMEOUT_MS.name
    if name not in fields:
        return math.inf
    timeout_ms = int(fields[name])
    if timeout_ms < 1:
        raise RequestError(name, f"must be at least 1, not {timeout_ms}")
    return timeout_ms / 1000


def _priority(fields: Mapping[str, Any]) -> int:
    priority = int(fields.get(tensors.PRIORITY.name, 0))
    if abs(priority) > _MAX_PRIORITY:
        raise RequestError(tensors.PRIORITY.name, f"must be from -{_MAX_PRIORITY} to {_MAX_PRIORITY}, not {priority}")
    return priority


def _label(fields: Mapping[str, Any], name: str) -> str:
    value: bytes = fields.get(name, b"")
    if len(value) > _MAX_LABEL_BYTES:
        raise RequestError(name, f"{len(value)} bytes are too many: at most {_MAX_LABEL_BYTES}")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise RequestError(name, f"is no UTF-8: {error.reason} at byte {error.start}") from None


#: Keeps the longest that aging takes in proportion.
_MAX_PRIORITY = 100
_MAX_LABEL_BYTES = 256
