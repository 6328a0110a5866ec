"""TensorRT's native transformer layers: rotary embedding, KV cache and attention.

Owns a maker for each. A cache is handed about as it lies in memory: an update writes its own rows and no others, and
attention decodes the rows that it sees. Never scales scores: TensorRT leaves that to the network.
"""

from __future__ import annotations

import itertools

import numpy as np

from tests.tensorrt.arithmetic import Attributes, Kernel, normalized
from tests.tensorrt.number_formats import Array, decode, encode


def rotary_embedding(values: Attributes) -> Kernel:
    """Turn `[B, N, S, H]` by tables `[B, S, H / 2]`, or `[positions, H / 2]` with position ids `[B, S]`."""
    interleaved, width = values["interleaved"], values["rotary_embedding_dim"]

    def run(x: Array, cosines: Array, sines: Array, positions: Array | None = None) -> Array:
        if positions is not None:
            if positions.size and (positions.min() < 0 or positions.max() >= len(cosines)):
                raise IndexError(f"position {positions.max()} in a table of {len(cosines)}")
            cosines, sines = cosines[positions], sines[positions]
        cosines, sines = cosines[:, None], sines[:, None]
        turned = x.copy()
        part = turned[..., : width or x.shape[-1]]
        half = part.shape[-1] // 2
        low, high = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(0, half), slice(half, None))
        first, second = part[..., low].copy(), part[..., high].copy()
        part[..., low] = first * cosines - second * sines
        part[..., high] = second * cosines + first * sines
        return turned

    return run


def kv_cache_update(values: Attributes) -> Kernel:
    """Write in place: `cache[b, :, start[b] + s] = update[b, :, s]`; the result is the cache itself."""
    kind = values["output_kind"]
    is_packed = values["update_form"] == "PACKED_NHD"

    def run(cache: Array, update: Array, starts: Array, lengths: Array | None = None) -> Array:
        update = encode(update, kind)
        if is_packed:
            assert lengths is not None, "the recorder demands them"
            rows = [update[a:b].swapaxes(0, 1) for a, b in itertools.pairwise(lengths)]
        else:
            rows = list(update)
        for slot, (new, start) in enumerate(zip(rows, starts.tolist(), strict=True)):
            end = start + new.shape[1]
            if start < 0 or end > cache.shape[2]:
                raise IndexError(f"rows {start} to {end} of a cache of {cache.shape[2]} (sequence {slot})")
            cache[slot, :, start:end] = new
        return cache

    return run


def attention(values: Attributes) -> Kernel:
    """Padded queries `[B, N, S, H]` over keys and values `[B, N_kv, S_kv, H]`, groups of heads sharing one of them.

    With `LOWER_RIGHT` query i sees the keys up to `i + (keys - queries)`, where keys are the sequence's own by
    `key_value_lengths`. A boolean mask says what may be seen, another is added to the scores.
    """
    if values["query_form"] != "PADDED_BHND" or values["key_value_form"] != "PADDED_BHND":
        raise KeyError("packed attention")
    causal, is_softmax = values["causal_kind"], values["norm_op"] == "SOFTMAX"
    kind = values["input_kinds"][1]

    def run(
        queries: Array,
        keys: Array,
        contents: Array,
        mask: Array | None = None,
        _query_lengths: Array | None = None,
        lengths: Array | None = None,
    ) -> Array:
        batch, _, num_queries, _ = queries.shape
        result = np.empty((*queries.shape[:3], contents.shape[3]), np.float32)
        for number in range(batch):
            count = keys.shape[2] if lengths is None else int(lengths[number])
            if not 0 <= count <= keys.shape[2]:
                raise IndexError(f"{count} keys in a cache of {keys.shape[2]} (sequence {number})")
            seen = None if mask is None else np.broadcast_to(mask, (batch, *mask.shape[1:]))[number]
            if seen is not None and seen.dtype == np.bool_:
                # What lies behind the last key that anyone sees adds nothing, unless nothing times it is NaN.
                places = np.flatnonzero(seen.reshape(-1, seen.shape[-1]).any(axis=0))
                behind = int(places[-1]) + 1 if len(places) else 0
                if np.isfinite(decode(contents[number, :, behind:count], kind)).all():
                    count = min(count, behind)
            result[number] = _attend(
                queries[number],
                decode(keys[number, :, :count], kind),
                decode(contents[number, :, :count], kind),
                mask=None if seen is None else seen[..., :count],
                offset=_offset(causal, num_queries, count),
                is_softmax=is_softmax,
            )
        return result

    return run


def _offset(causal: str, num_queries: int, num_keys: int) -> int | None:
    """By how much a query sees beyond its own number; None is everything."""
    return {"NONE": None, "UPPER_LEFT": 0, "LOWER_RIGHT": num_keys - num_queries}[causal]


def _attend(
    queries: Array, keys: Array, contents: Array, *, mask: Array | None, offset: int | None, is_softmax: bool
) -> Array:
    """One sequence, in float32: `[N, S, H]`."""
    num_heads, num_queries, width = queries.shape
    if keys.shape[1] == 0:
        return np.full((num_heads, num_queries, contents.shape[2]), np.nan, np.float32)
    grouped = queries.reshape(len(keys), -1, width)
    scores = (grouped @ keys.swapaxes(1, 2)).reshape(num_heads, num_queries, -1)
    if offset is not None and offset < keys.shape[1] - 1:
        later = np.arange(keys.shape[1]) > np.arange(num_queries)[:, None] + offset
        scores = np.where(later, np.float32(-np.inf), scores)
    if mask is not None:
        scores = np.where(mask, scores, np.float32(-np.inf)) if mask.dtype == np.bool_ else scores + mask
    weights = normalized(scores) if is_softmax else scores
    return (weights.reshape(len(keys), -1, keys.shape[1]) @ contents).reshape(num_heads, num_queries, -1)
