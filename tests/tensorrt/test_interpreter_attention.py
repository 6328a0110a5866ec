"""TensorRT's native transformer layers against torch and transformers, one at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tests.tensorrt.interpreter import Interpreter, evaluate
from tests.tensorrt.number_formats import Array
from tests.tensorrt.program import Program
from tests.tensorrt.small_networks import FLOATS, KINDS, bits, close, constant, normal, recorded, trt
from trident_ensemble.contract.errors import EngineError


@pytest.mark.parametrize(("kind", "torch_kind", "tolerance"), FLOATS)
def test_interpreter_attention_rotary_embedding_is_transformers(
    kind: Any, torch_kind: torch.dtype, tolerance: float
) -> None:
    batch, heads, tokens, width, limit = 2, 3, 4, 8, 50
    angles = torch.outer(torch.arange(limit).float(), 10000.0 ** (-torch.arange(0, width, 2).float() / width))
    cosines, sines = angles.cos().to(torch_kind), angles.sin().to(torch_kind)
    x = torch.from_numpy(normal(batch, heads, tokens, width)).to(torch_kind)
    positions = torch.tensor([[0, 1, 2, 3], [49, 7, 7, 20]], dtype=torch.int32)

    def write(net: Any, x: Any, positions: Any) -> Any:
        tables = [constant(net, bits(table), kind) for table in (cosines, sines)]
        layer = net.add_rotary_embedding(x, *tables, False, 0)
        layer.set_input(3, positions)
        return layer.get_output(0)

    program = recorded(write, {"x": (kind, (-1, heads, -1, width)), "positions": (trt.int32, (-1, -1))})
    result = evaluate(program, {"x": bits(x), "positions": positions.numpy()})["out0"]
    full = [torch.cat([table, table], -1)[positions.long()].float() for table in (cosines, sines)]
    expected, _ = apply_rotary_pos_emb(x.float(), x.float(), *full)
    close(result, expected, tolerance, kind.name)
    with pytest.raises(EngineError, match="position 50"):
        evaluate(program, {"x": bits(x), "positions": positions.numpy() + 1})


def test_interpreter_attention_rotary_embedding_of_a_part_leaves_the_rest() -> None:
    batch, heads, tokens, width, part = 2, 3, 4, 12, 8
    angles = torch.outer(torch.arange(20).float(), 100.0 ** (-torch.arange(0, part, 2).float() / part))
    x, positions = normal(batch, heads, tokens, width), torch.tensor([[0, 1, 2, 3], [9, 7, 7, 19]], dtype=torch.int32)

    def write(net: Any, x: Any, positions: Any) -> Any:
        tables = [constant(net, table.numpy()) for table in (angles.cos(), angles.sin())]
        layer = net.add_rotary_embedding(x, *tables, False, part)
        layer.set_input(3, positions)
        return layer.get_output(0)

    program = recorded(write, {"x": (trt.float32, (-1, heads, -1, width)), "positions": (trt.int32, (-1, -1))})
    result = evaluate(program, {"x": x, "positions": positions.numpy()})["out0"]
    full = [torch.cat([table, table], -1)[positions.long()] for table in (angles.cos(), angles.sin())]
    first = torch.from_numpy(x[..., :part])
    expected, _ = apply_rotary_pos_emb(first, first, *full)
    np.testing.assert_allclose(result[..., :part], expected.numpy(), atol=1e-6)
    np.testing.assert_array_equal(result[..., part:], x[..., part:])


def attention_program(kind: Any, causal: str, heads: int, kv_heads: int, width: int, *, mask: Any = None) -> Program:
    def write(net: Any, q: Any, k: Any, v: Any, *, lengths: Any = None, mask: Any = None) -> Any:
        layer = net.add_attention_v2(q, k, v, trt.AttentionNormalizationOp.SOFTMAX, getattr(trt.CausalMaskKind, causal))
        if lengths is not None:
            layer.key_value_lengths = lengths
        if mask is not None:
            layer.mask = mask
        return layer.get_output(0)

    shapes = {"q": (kind, (-1, heads, -1, width)), "k": (kind, (-1, kv_heads, -1, width))}
    shapes["v"] = shapes["k"]
    extra = {"lengths": (trt.int32, (-1,))} if mask is None else {"mask": (mask, (-1, 1, -1, -1))}
    return recorded(write, {**shapes, **extra})


@pytest.mark.parametrize(("kind", "torch_kind", "tolerance"), FLOATS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (4, 1)])
def test_interpreter_attention_causal_attention_ends_at_each_sequences_own_length(
    kind: Any, torch_kind: torch.dtype, tolerance: float, heads: int, kv_heads: int
) -> None:
    lengths, num_queries, size, width = [9, 3, 12], 3, 12, 16
    q, k, v = (
        torch.from_numpy(normal(3, count, rows, width, seed=count + rows)).to(torch_kind)
        for count, rows in ((heads, num_queries), (kv_heads, size), (kv_heads, size))
    )
    for number, length in enumerate(lengths):
        k[number, :, length:] = float("nan")
        v[number, :, length:] = float("nan")
    program = attention_program(kind, "LOWER_RIGHT", heads, kv_heads, width)
    arrays = {"q": bits(q), "k": bits(k), "v": bits(v), "lengths": np.array(lengths, np.int32)}
    result = evaluate(program, arrays)["out0"]
    for number, length in enumerate(lengths):
        seen = torch.ones(num_queries, length, dtype=torch.bool).tril(length - num_queries)
        expected = torch.nn.functional.scaled_dot_product_attention(
            q[number].float(),
            k[number, :, :length].float(),
            v[number, :, :length].float(),
            attn_mask=seen,
            scale=1.0,
            enable_gqa=True,
        )
        close(result[number], expected, tolerance, kind.name)


def test_interpreter_attention_attention_obeys_masks() -> None:
    q, k, v = (normal(2, heads, rows, 16, seed=rows) for heads, rows in ((4, 3), (2, 8), (2, 8)))
    seen = np.random.default_rng(3).random((2, 1, 3, 8)) < 0.5
    seen[..., 0], seen[..., 6:] = True, False
    tensors = torch.from_numpy(q), torch.from_numpy(k), torch.from_numpy(v)
    for kind, mask in ((trt.bool, seen), (trt.float32, normal(2, 1, 3, 8, seed=9))):
        program = attention_program(trt.float32, "NONE", 4, 2, 16, mask=kind)
        expected = torch.nn.functional.scaled_dot_product_attention(
            *tensors, attn_mask=torch.from_numpy(mask), scale=1.0, enable_gqa=True
        )
        result = evaluate(program, {"q": q, "k": k, "v": v, "mask": mask})["out0"]
        np.testing.assert_allclose(result, expected.numpy(), rtol=1e-5, atol=1e-5)


def cache_program(kind: Any, form: str = "PADDED_BHND") -> Program:
    def write(net: Any, cache: Any, update: Any, starts: Any, lengths: Any = None) -> Any:
        layer = net.add_kv_cache_update(cache, update, starts, trt.KVCacheMode.LINEAR)
        if lengths is not None:
            layer.update_form = trt.AttentionIOForm.PACKED_NHD
            layer.update_lengths = lengths
        return layer.get_output(0), net.add_cast(layer.get_output(0), trt.float32).get_output(0)

    is_packed = form == "PACKED_NHD"
    update = (-1, 2, 4) if is_packed else (-1, 2, -1, 4)
    forms = {"cache": (kind, (-1, 2, 10, 4)), "update": (kind, update), "starts": (trt.int32, (-1,))}
    return recorded(write, {**forms, "lengths": (trt.int32, (-1,))} if is_packed else forms)


@pytest.mark.parametrize(("kind", "torch_kind"), KINDS)
def test_interpreter_attention_caches_are_written_in_place_and_nowhere_else(kind: Any, torch_kind: torch.dtype) -> None:
    cache, update = (torch.from_numpy(normal(3, 2, rows, 4, seed=rows)).to(torch_kind) for rows in (10, 2))
    expected = cache.clone()
    starts = [0, 8, 3]
    for number, start in enumerate(starts):
        expected[number, :, start : start + 2] = update[number]
    memory = bits(cache).copy()
    arrays = {"cache": memory, "update": bits(update), "starts": np.array(starts, np.int32)}
    results = Interpreter(cache_program(kind)).evaluate(arrays, {"out0": memory})
    assert results["out0"] is memory
    np.testing.assert_array_equal(memory, bits(expected))
    np.testing.assert_array_equal(results["out1"], expected.float().numpy())
    with pytest.raises(EngineError, match="rows 9 to 11 of a cache of 10"):
        evaluate(cache_program(kind), {**arrays, "starts": np.array([0, 9, 3], np.int32)})
    with pytest.raises(EngineError, match="does not lie where the cache does"):
        evaluate(cache_program(kind), arrays, {"out0": memory.copy()})


def test_interpreter_attention_packed_updates_of_caches_are_divided_by_their_lengths() -> None:
    cache, update = normal(2, 2, 10, 4), normal(5, 2, 4, seed=1)
    expected = cache.copy()
    expected[0, :, 7:10] = update[:3].swapaxes(0, 1)
    expected[1, :, 0:2] = update[3:].swapaxes(0, 1)
    arrays = {"cache": cache, "update": update, "starts": np.array([7, 0], np.int32)}
    evaluate(cache_program(trt.float32, "PACKED_NHD"), {**arrays, "lengths": np.array([0, 3, 5], np.int32)})
    np.testing.assert_array_equal(cache, expected)


@pytest.mark.parametrize("operation", ["ALL_REDUCE", "ALL_GATHER", "REDUCE_SCATTER"])
def test_interpreter_attention_collectives_are_handed_out(operation: str) -> None:
    reduction = trt.ReduceOperation.NONE if operation == "ALL_GATHER" else trt.ReduceOperation.SUM

    def write(net: Any, x: Any) -> Any:
        layer = net.add_dist_collective(x, getattr(trt.CollectiveOperation, operation), reduction, -1, [])
        layer.num_ranks = 2
        return layer.get_output(0)

    program = recorded(write, {"x": (trt.float32, (-1, 3))})
    calls = []

    def collective(*call: Any) -> Array:
        calls.append(call[:2])
        return np.concatenate([call[2], call[2]])

    x = normal(2, 3)
    result = Interpreter(program, collective).evaluate({"x": x})["out0"]
    np.testing.assert_array_equal(result, np.concatenate([x, x]))
    assert calls == [(operation, reduction.name)]
    with pytest.raises(EngineError, match="2 ranks"):
        Interpreter(program)
