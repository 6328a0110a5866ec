"""Layers that move values, against torch, one at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.tensorrt.interpreter import evaluate
from tests.tensorrt.small_networks import constant, ints, normal, recorded, run, trt
from trident_ensemble.contract.errors import EngineError


def test_interpreter_movement_shuffles_transpose_reshape_and_transpose() -> None:
    def write(net: Any, x: Any) -> Any:
        layer = net.add_shuffle(x)
        layer.first_transpose = trt.Permutation((1, 0, 2))
        layer.reshape_dims = (0, -1, 2)
        layer.second_transpose = trt.Permutation((2, 0, 1))
        return layer.get_output(0)

    x = normal(3, 4, 6)
    expected = torch.from_numpy(x).permute(1, 0, 2).reshape(4, -1, 2).permute(2, 0, 1).numpy()
    np.testing.assert_array_equal(run(write, x=x), expected)


def test_interpreter_movement_shapes_are_computed_from_shapes_also_of_layers_that_were_added_later() -> None:
    def write(net: Any, x: Any, y: Any) -> Any:
        layer = net.add_shuffle(x)
        sizes = net.add_concatenation([net.add_shape(y).get_output(0), ints(net, 2, -1)]).get_output(0)
        layer.set_input(1, sizes)
        return layer.get_output(0)

    for rows, columns in ((3, 2), (1, 5)):
        x = normal(rows * columns * 2 * 7)
        np.testing.assert_array_equal(run(write, x=x, y=normal(rows, columns)), x.reshape(rows, columns, 2, 7))


def test_interpreter_movement_slices_may_be_of_some_axes() -> None:
    def write(net: Any, x: Any) -> Any:
        layer = net.add_slice(x, (2,), (3,), (2,))
        layer.axes = (1,)
        return layer.get_output(0)

    x = normal(4, 8, 3)
    np.testing.assert_array_equal(run(write, x=x), torch.from_numpy(x)[:, 2:8:2].numpy())


def test_interpreter_movement_slices_have_static_and_dynamic_places() -> None:
    def write(net: Any, x: Any, start: Any, size: Any) -> Any:
        static = net.add_slice(x, (1, 6), (2, 3), (1, -2))
        dynamic = net.add_slice(x, (0, 0), (0, 0), (1, 2))
        dynamic.set_input(1, start)
        dynamic.set_input(2, size)
        outside = net.add_slice(x, (2, 5), (3, 3), (1, 1))
        outside.mode = trt.SampleMode.FILL
        return static.get_output(0), dynamic.get_output(0), outside.get_output(0)

    forms = {"x": (trt.float32, (-1, -1)), "start": (trt.int64, (2,)), "size": (trt.int64, (2,))}
    program = recorded(write, forms)
    x = normal(4, 7)
    results = evaluate(program, {"x": x, "start": np.array([1, 2]), "size": np.array([2, 2])})
    np.testing.assert_array_equal(results["out0"], x[1:3, 6:0:-2])
    np.testing.assert_array_equal(results["out1"], x[1:3, 2:6:2])
    np.testing.assert_array_equal(results["out2"], np.pad(x, ((0, 1), (0, 1)))[2:5, 5:8])
    for start in ([3, 2], [-1, 2]):
        with pytest.raises(EngineError, match="SLICE"):
            evaluate(program, {"x": x, "start": np.array(start), "size": np.array([2, 2])})


def test_interpreter_movement_gathers_pick_rows_places_and_elements() -> None:
    def write(net: Any, x: Any, i: Any) -> Any:
        rows = net.add_gather(x, i, 1)
        places = net.add_gather_v2(x, i, trt.GatherMode.ND)
        elements = net.add_gather_v2(x, i, trt.GatherMode.ELEMENT)
        elements.axis = 1
        return tuple(layer.get_output(0) for layer in (rows, places, elements))

    x, i = torch.from_numpy(normal(4, 4)), torch.tensor([[0, 3], [2, 2], [1, 0], [3, 1]], dtype=torch.int32)
    program = recorded(write, {"x": (trt.float32, (-1, -1)), "i": (trt.int32, (-1, 2))})
    results = evaluate(program, {"x": x.numpy(), "i": i.numpy()})
    np.testing.assert_array_equal(results["out0"], x[:, i.long()].numpy())
    np.testing.assert_array_equal(results["out1"], x[i[:, 0].long(), i[:, 1].long()].numpy())
    np.testing.assert_array_equal(results["out2"], torch.gather(x, 1, i.long()).numpy())
    for wrong in (1, -1):
        with pytest.raises(EngineError, match="GATHER"):
            evaluate(program, {"x": x.numpy(), "i": i.numpy() + np.int32(wrong)})


def test_interpreter_movement_grouped_gathers_pick_in_each_row_its_own_places() -> None:
    def write(net: Any, x: Any, i: Any) -> Any:
        layer = net.add_gather_v2(x, i, trt.GatherMode.ND)
        layer.num_elementwise_dims = 1
        return layer.get_output(0)

    program = recorded(write, {"x": (trt.float32, (-1, -1, 2)), "i": (trt.int32, (-1, -1, 1))})
    x, i = normal(3, 5, 2), np.array([[[4], [0]], [[1], [1]], [[2], [3]]], np.int32)
    result = evaluate(program, {"x": x, "i": i})["out0"]
    np.testing.assert_array_equal(result, np.take_along_axis(x, i.astype(np.int64), 1))


def test_interpreter_movement_scatters_write_places_and_elements() -> None:
    def write(net: Any, x: Any, i: Any, u: Any) -> Any:
        places = net.add_scatter(x, net.add_identity(i).get_output(0), u, trt.ScatterMode.ND)
        return places.get_output(0)

    x, u = normal(4, 5), normal(3, seed=1)
    i = np.array([[0, 1], [3, 4], [2, 0]], np.int32)
    expected = torch.from_numpy(x).index_put((torch.tensor(i[:, 0]), torch.tensor(i[:, 1])), torch.from_numpy(u))
    before = x.copy()
    np.testing.assert_array_equal(run(write, x=x, i=i, u=u), expected.numpy())
    np.testing.assert_array_equal(x, before)

    def by_element(net: Any, x: Any, i: Any, u: Any) -> Any:
        layer = net.add_scatter(x, i, u, trt.ScatterMode.ELEMENT)
        layer.axis = 1
        return layer.get_output(0)

    u, i = normal(4, 2, seed=1), np.array([[0, 4], [1, 2], [3, 0], [4, 1]], np.int32)
    expected = torch.from_numpy(x).scatter(1, torch.from_numpy(i).long(), torch.from_numpy(u))
    np.testing.assert_array_equal(run(by_element, x=x, i=i, u=u), expected.numpy())


def test_interpreter_movement_fills_count_from_alpha_by_beta() -> None:
    def write(net: Any, size: Any) -> Any:
        fixed = net.add_fill((2, 3), trt.FillOperation.LINSPACE, trt.float32)
        fixed.set_input(1, constant(net, np.array(1.0, np.float32)))
        fixed.set_input(2, constant(net, np.array([100.0, 10.0], np.float32)))
        counted = net.add_fill((1,), trt.FillOperation.LINSPACE, trt.int32)
        counted.set_input(0, size)
        counted.set_input(1, constant(net, np.array(0, np.int32)))
        counted.set_input(2, constant(net, np.array([1], np.int32)))
        return fixed.get_output(0), counted.get_output(0)

    results = evaluate(recorded(write, {"size": (trt.int64, (1,))}), {"size": np.array([4])})
    np.testing.assert_array_equal(results["out0"], [[1, 11, 21], [101, 111, 121]])
    np.testing.assert_array_equal(results["out1"], np.arange(4, dtype=np.int32))


def test_interpreter_movement_one_hot_and_axes_of_one_are_torchs() -> None:
    def write(net: Any, i: Any) -> Any:
        values, depth = constant(net, np.array([0, 1], np.float32)), constant(net, np.array(5, np.int32))
        hot = net.add_one_hot(i, values, depth, -1).get_output(0)
        wide = net.add_unsqueeze(hot, ints(net, 0, 2)).get_output(0)
        return net.add_squeeze(wide, ints(net, 2)).get_output(0)

    i = np.array([3, 0, 4], np.int32)
    expected = torch.nn.functional.one_hot(torch.from_numpy(i).long(), 5).float()[None].numpy()
    np.testing.assert_array_equal(run(write, i=i), expected)
