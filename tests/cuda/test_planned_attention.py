"""The planner and the kernels together: long contexts, divided as on a GPU, give attention in float64.

The twins of the kernels compute, on captured grids; what tests of whole engines compute is too short to be divided.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.cuda import twins
from tests.cuda.calls import Call
from trident_backend.engine.gpu.attention_plan import AttentionPlanner
from trident_backend.engine.gpu.program import AttentionKind
from trident_backend.engine.protocol import Int32Array
from trident_compiler.cuda.attention_kernels import attention_specs
from trident_compiler.cuda.kernel_spec import KernelSpec

Floats = npt.NDArray[np.float32]
KV_HEADS, GROUP, DIM, BLOCK = 2, 4, 16, 16
#: Of sequences: tokens in the cache, and new ones: one, guesses that need a large tile, a prompt's end and a prompt.
STEP = ((2000, 1), (900, 7), (0, 70), (700, 40), (90, 1), (1500, 3), (0, 1))
SCALE = 0.3


def launch(spec: KernelSpec, grid: tuple[int, int, int], arguments: dict[str, Any]) -> None:
    twins.run(spec.function, Call.on_arrays(grid, dict(spec.types), dict(spec.constants), arguments))


def padded(rows: Int32Array, count: int) -> Int32Array:
    """Items or merges, and behind them some of no tokens."""
    return np.concatenate([rows, np.zeros((count - len(rows), rows.shape[1]), np.int32)])


def expected(queries: Floats, histories: list[tuple[Floats, Floats]], window: int) -> Floats:
    """Attention in float64, one token and one head after another."""
    out, token = np.empty((len(queries), KV_HEADS * GROUP, DIM)), 0
    for (past, count), (keys, values) in zip(STEP, histories, strict=True):
        for position in range(past, past + count):
            seen = slice(max(0, position - window + 1) if window else 0, position + 1)
            for head in range(KV_HEADS * GROUP):
                scores = keys[seen, head // GROUP].astype(np.float64) @ queries[token, head] * SCALE
                weights = np.exp(scores - scores.max())
                out[token, head] = weights @ values[seen, head // GROUP] / weights.sum()
            token += 1
    return out.astype(np.float32)


def _divided(spec: KernelSpec, head_parts: int) -> KernelSpec:
    """The kernel, as if its tile could not hold a group's heads."""
    return KernelSpec.of(spec.function, dict(spec.types), {**dict(spec.constants), "PARTS": head_parts})


@pytest.mark.parametrize(("window", "num_programs", "head_parts"), [(0, 64, 1), (0, 16, 1), (600, 64, 1), (0, 64, 2)])
def test_planned_attention_of_divided_contexts_is_attention(window: int, num_programs: int, head_parts: int) -> None:
    rng = np.random.default_rng(window + num_programs)
    specs = attention_specs(
        num_kv_heads=KV_HEADS, group=GROUP, head_dim=DIM, v_head_dim=DIM, block_size=BLOCK,
        compute="fp32", cache="fp32", capability=(9, 0), has_window=window > 0,
    )  # fmt: skip
    names = ("write", "few", "many", "merge_few", "merge_many")
    kind = AttentionKind(KV_HEADS, GROUP, DIM, DIM, window, specs.few_rows, specs.many_rows, *names, head_parts)
    past_lens, lens = np.array(STEP, np.int32).T
    begins = np.concatenate([[0], lens.cumsum()]).astype(np.int32)
    num_blocks = -(-(past_lens + lens) // BLOCK)
    tables = rng.permutation(num_blocks.sum() + 5)[: num_blocks.sum()].astype(np.int32)
    table_begins = np.concatenate([[0], num_blocks.cumsum()]).astype(np.int32)
    caches = [np.full((num_blocks.sum() + 5, KV_HEADS, BLOCK, DIM), np.nan, np.float32) for _ in range(2)]
    histories: list[tuple[Floats, Floats]] = []
    for index, (past, count) in enumerate(STEP):
        history = rng.normal(size=(2, past + count, KV_HEADS, DIM)).astype(np.float32)
        histories.append((history[0], history[1]))
        positions = np.arange(past + count)
        for cache, numbers in zip(caches, history, strict=True):
            cache[tables[table_begins[index] + positions // BLOCK], :, positions % BLOCK] = numbers
    queries = rng.normal(size=(begins[-1], KV_HEADS * GROUP, DIM)).astype(np.float32)
    out = np.full_like(queries, np.nan)

    planner = AttentionPlanner(kind, num_programs)
    plan, bounds = planner.plan(past_lens, begins, table_begins), planner.bounds(int(begins[-1]), len(STEP))
    assert plan.num_partials_few
    assert plan.num_partials_many
    given = {
        "queries": queries, "key_cache": caches[0], "value_cache": caches[1], "tables": tables, "scale": SCALE,
        "sinks": 0, "slopes": 0, "softcap": 0.0, "window": window, "key_factor": 1.0, "value_factor": 1.0,
    }  # fmt: skip

    def compute(size: str, rows: int, attend: KernelSpec, merge: KernelSpec) -> None:
        """Launch what is captured for tiles of a size."""
        attend, merge = (_divided(spec, head_parts) for spec in (attend, merge))
        shape = (getattr(bounds, f"partials_{size}"), kind.num_programs, rows)
        partials = {
            "partial_out": np.full((*shape, DIM), np.nan, np.float32),
            "partial_stats": np.full((*shape, 2), np.nan, np.float32),
        }
        items = padded(getattr(plan, size), getattr(bounds, size))
        launch(attend, (len(items), kind.num_programs, 1), {"out": out, **partials, **given, "items": items})
        merges = padded(getattr(plan, f"merges_{size}"), getattr(bounds, f"merges_{size}"))
        launch(merge, (len(merges), kind.num_programs, 1), {"out": out, **partials, "merges": merges})

    compute("few", specs.few_rows, specs.few, specs.merge_few)
    compute("many", specs.many_rows, specs.many, specs.merge_many)
    np.testing.assert_allclose(out, expected(queries, histories, window), rtol=0, atol=1e-5)
