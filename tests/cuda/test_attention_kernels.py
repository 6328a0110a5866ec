"""Kernels of attention: their source in the interpreter and their twins, against float64; their tiles by target."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.cuda import attention_steps, calls, interpreting
from tests.cuda.attention_steps import NUM_STEPS, Launch, Step, by_twin, check_step, draw_kind, interpreted, is_same
from tests.cuda.calls import narrow, storage, widen
from tests.cuda.interpreting import interpret
from trident_compiler.cuda.attention_kernels import AttentionSpecs, attention_specs, copy_blocks_spec
from trident_compiler.cuda.kernel_spec import KernelSpec
from trident_compiler.cuda.targets import TARGETS, Capability
from trident_ensemble.contract.errors import BuildError

Array = npt.NDArray[Any]
BOTH = pytest.mark.parametrize("launch", [interpreted, by_twin])


@pytest.mark.parametrize("seed", range(NUM_STEPS))
def test_attention_kernels_are_right_in_a_random_mixed_step(seed: int) -> None:
    check_step(seed)


def test_attention_kernels_are_right_for_a_group_of_many_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as Falcon 7B has, whose rows are no power of two."""
    kind = replace(draw_kind(1), group=71, kv_heads=1, dim=16, dim_v=16, many_rows=128, head_parts=1)
    monkeypatch.setattr(attention_steps, "draw_kind", lambda _: kind)
    check_step(1)


def test_random_steps_have_all_features_with_each_other() -> None:
    kinds = [draw_kind(seed) for seed in range(192)]
    assert {kind.group for kind in kinds} == {1, 2, 3, 4, 5, 7, 8, 12, 16, 32}
    assert {64, 80, 96, 128, 192, 256} <= {kind.dim for kind in kinds}
    types = Counter((kind.compute, kind.cache) for kind in kinds)
    assert len(types) == 6
    assert min(types.values()) >= 10
    assert sum(kind.dim != kind.dim_v for kind in kinds) > 50
    features = Counter((kind.window > 0, kind.softcap > 0, kind.sinks, kind.alibi) for kind in kinds)
    assert len(features) == 16, "all of them alone and together"
    assert sum(kind.head_parts > 1 for kind in kinds) > 40


def test_random_steps_divide_small_and_large_tiles_over_keys() -> None:
    divided: Counter[str] = Counter()
    for seed in range(40):
        _, merges, _ = Step(seed).divide()
        divided.update({size: len(found) - 2 for size, found in merges.items()})
    assert min(divided["few"], divided["many"]) > 20


@pytest.mark.parametrize("seed", range(3, 9))
def test_attention_kernels_do_not_depend_on_the_order_of_programs(seed: int) -> None:
    def backwards(function: str, *launched: Any) -> None:
        interpret(function, *launched, backwards=True)

    found = []
    for launch in (interpreted, backwards):
        step = Step(seed)
        step.write(launch)
        found.append(step.attend(launch))
    assert is_same(found[0].out, found[1].out)


@pytest.mark.parametrize("seed", [0, 7])
def test_attend_gives_a_row_the_same_whoever_else_is_in_the_step(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Step(seed)
    whole.write(interpreted)
    together = whole.attend(interpreted)
    alone = Step(seed)
    alone.write(interpreted)
    divide = Step.divide

    def divide_first(step: Step) -> tuple[dict[str, Array], dict[str, Array], dict[str, int]]:
        items, merges, partials = divide(step)
        for found in items.values():
            found[found[:, 1] >= step.begins[1], 2] = 0
        for found in merges.values():
            found[found[:, 0] >= step.begins[1], 1] = 0
        return items, merges, partials

    monkeypatch.setattr(Step, "divide", divide_first)
    first = alone.attend(interpreted)
    mine = int(whole.begins[1])
    assert np.array_equal(first.out[:mine], together.out[:mine])
    assert np.isnan(widen(first.out[mine:], alone.kind.compute)).all()


def test_attend_refuses_memory_outside_of_the_cache() -> None:
    step = Step(4)
    step.write(interpreted)
    step.tables[step.table_begins[0]] = len(step.key_cache)
    with pytest.raises(Exception, match="none of the arrays"):
        step.attend(interpreted)


@BOTH
@pytest.mark.parametrize("compute", ["bf16", "fp16", "fp32"])
def test_write_cache_of_fp8_has_the_largest_number_for_larger_ones(
    launch: Launch, compute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the conversion to fp8 itself gives NaN for what is too large, as PyTorch's does."""

    def overflowing(numbers: Array, dtype: str) -> Array:
        too_large = (dtype == "fp8e4nv") & ~(np.abs(numbers) <= 448)
        return narrow(np.where(too_large, np.nan, numbers), dtype)

    monkeypatch.setattr(calls, "narrow", overflowing)
    monkeypatch.setattr(interpreting, "narrow", overflowing)
    numbers = np.array([448, -448, 449, -600, 65504, -65504, np.inf, -np.inf, np.nan, 0, 1.0625, -464, 2, 3, 4, 5])
    spec = _specs((9, 0), head_dim=16, compute=compute, cache="fp8e4nv").write
    keys = narrow(numbers.reshape(1, 1, 16), compute)
    caches = [np.full((2, 1, 32, 16), 0x7F, np.uint8) for _ in range(2)]
    arguments: dict[str, Array | int | float] = {
        **dict.fromkeys(("keys", "values"), keys),
        **dict(zip(("key_cache", "value_cache"), caches, strict=True)),
        "places": np.array([33], np.int32),
        "key_factor": 1.0,
        "value_factor": 1.0,
    }
    launch(spec.function, (1, 1, 1), dict(spec.types), dict(spec.constants), arguments)
    expected = np.array([448, -448, 448, -448, 448, -448, 448, -448, np.nan, 0, 1, -448, 2, 3, 4, 5])
    for cache in caches:
        np.testing.assert_array_equal(widen(cache, "fp8e4nv")[1, 0, 1], expected)


@BOTH
def test_copy_blocks_copies_in_order_in_every_layer(launch: Launch) -> None:
    rng = np.random.default_rng(0)
    num_blocks, sizes = 9, (4096 + 12, 8, 4096, 20)
    begins = np.concatenate([[8], 8 + np.cumsum([num_blocks * size + 4 for size in sizes])])
    pool = rng.integers(-(2**31), 2**31 - 1, begins[-1], np.int32)
    copies = np.array([(1, 4), (4, 7), (0, 4), (7, 2), (3, 3)], np.int32)
    expected = pool.copy()
    for begin, size in zip(begins[:-1], sizes, strict=True):
        blocks = expected[begin : begin + num_blocks * size].reshape(num_blocks, size)
        for source, target in copies:
            blocks[target] = blocks[source].copy()
    geometry = np.stack([begins[:-1], sizes], axis=1).astype(np.int64)
    spec = copy_blocks_spec()
    arguments = {"pool": pool, "geometry": geometry, "copies": copies, "num_copies": len(copies)}
    launch(spec.function, (len(sizes), 1, 1), dict(spec.types), dict(spec.constants), arguments)
    assert np.array_equal(pool, expected)


@BOTH
def test_attend_and_merge_touch_nothing_where_no_item_has_tokens(launch: Launch) -> None:
    specs = _specs((9, 0), head_dim=64)
    out, sums = np.full((3, 4, 64), 7, np.uint16), np.full((2, 1, 128, 64), 7, np.float32)
    empty: dict[str, Array] = {name: np.zeros(0, storage(name)) for name in ("fp32", "bf16", "i32")}
    items = {"items": np.zeros((5, 8), np.int32), "merges": np.zeros((5, 4), np.int32)}
    for spec in (specs.few, specs.many, specs.merge_few, specs.merge_many):
        types = dict(spec.types)
        given: dict[str, Array | int | float] = {n: empty[t[1:]] if t[0] == "*" else 1 for n, t in types.items()}
        given |= {"out": out, "partial_out": sums}
        given |= {name: array for name, array in items.items() if name in types}
        launch(spec.function, (5, 1, 1), types, dict(spec.constants), given)
    assert (out == 7).all()
    assert (sums == 7).all()


@pytest.mark.parametrize(
    ("capability", "dims", "tile"),
    [
        ((8, 0), (128, 128), (128, 64)),
        ((8, 6), (128, 128), (128, 64)),
        ((8, 9), (80, 80), (128, 64)),
        ((12, 0), (64, 64), (128, 64)),
        ((9, 0), (128, 128), (128, 64)),
        ((9, 0), (256, 256), (128, 64)),
        ((10, 0), (192, 128), (128, 64)),
        ((8, 0), (256, 256), (64, 64)),
        ((8, 6), (256, 256), (64, 32)),
        ((12, 0), (192, 192), (64, 32)),
    ],
)
def test_attention_specs_have_the_largest_tile_that_fits_the_target(
    capability: Capability, dims: tuple[int, int], tile: tuple[int, int]
) -> None:
    specs = _specs(capability, head_dim=dims[0], v_head_dim=dims[1])
    assert (specs.many_rows, _constant(specs.many, "KEYS")) == tile
    assert specs.few_rows == 16


@pytest.mark.parametrize(("dim", "tile"), [(64, (32, 32)), (128, (32, 32)), (256, (16, 16))])
def test_attention_specs_have_tiles_of_float32_that_fit_into_registers(dim: int, tile: tuple[int, int]) -> None:
    for capability in TARGETS:
        specs = _specs(capability, head_dim=dim, compute="fp32", cache="fp32")
        assert (specs.many_rows, _constant(specs.many, "KEYS")) == tile
        assert _constant(specs.few, "KEYS") == tile[1]


@pytest.mark.parametrize(("group", "rows"), [(1, 16), (7, 16), (16, 16), (17, 32), (32, 32), (71, 128)])
def test_attention_specs_have_small_tiles_of_all_heads_of_a_group(group: int, rows: int) -> None:
    specs = _specs((9, 0), group=group)
    assert specs.few_rows == rows
    assert specs.many_rows == 128
    assert _constant(specs.merge_few, "ROWS") == _constant(specs.few, "ROWS") == rows
    assert _constant(specs.merge_many, "ROWS") == _constant(specs.many, "ROWS") == 128


@pytest.mark.parametrize(
    ("capability", "group", "parts"),
    [((9, 0), 128, 4), ((8, 0), 128, 4), ((10, 0), 64, 2), ((8, 6), 128, 8), ((12, 0), 64, 4), ((9, 0), 16, 1)],
)
def test_attention_specs_divide_groups_whose_heads_fit_into_no_tile(
    capability: Capability, group: int, parts: int
) -> None:
    """Latent attention, absorbed: one head of keys for all query heads."""
    for cache in ("bf16", "fp8e4nv"):
        specs = _specs(capability, group=group, head_dim=576, v_head_dim=512, cache=cache)
        assert specs.head_parts == parts
        assert specs.few_rows <= specs.many_rows <= 32, "sums of more rows do not fit into registers"
        for spec in (specs.few, specs.many, specs.merge_few, specs.merge_many):
            assert (_constant(spec, "GROUP"), _constant(spec, "PARTS")) == (group, parts)


def test_attention_specs_refuse_heads_that_fit_into_no_tile() -> None:
    with pytest.raises(BuildError, match=r"128 heads of 576 numbers .* fp32 .* 101376 bytes .* 8\.6"):
        _specs((8, 6), group=128, head_dim=576, v_head_dim=512, compute="fp32", cache="fp32")


@pytest.mark.parametrize("capability", TARGETS)
def test_attention_specs_name_every_parameter_of_the_kernels(capability: Capability) -> None:
    specs = _specs(capability, cache="fp8e4nv", has_window=True, has_softcap=True, has_sinks=True, has_alibi=True)
    for spec in (specs.write, specs.few, specs.many, specs.merge_few, specs.merge_many, copy_blocks_spec()):
        kernel = attention_steps.source_of(spec.function)
        assert sorted(kernel.arg_names) == sorted([*dict(spec.types), *dict(spec.constants)])
    assert all(_constant(specs.few, name) for name in ("WINDOW", "CAP", "SINKS", "ALIBI", "QUANT"))
    plain = _specs(capability)
    assert not any(_constant(plain.few, name) for name in ("WINDOW", "CAP", "SINKS", "ALIBI", "QUANT"))


def _specs(capability: Capability, **given: Any) -> AttentionSpecs:
    kind: dict[str, Any] = {
        "num_kv_heads": 1,
        "group": 4,
        "head_dim": 128,
        "block_size": 32,
        "compute": "bf16",
        "cache": "bf16",
    }
    kind |= {"v_head_dim": given.get("head_dim", 128), **given}
    return attention_specs(capability=capability, **kind)


def _constant(spec: KernelSpec, name: str) -> int | float | bool:
    return dict(spec.constants)[name]
