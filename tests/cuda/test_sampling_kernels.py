"""Sampling's kernels: their source against numpy and their twins, and `DeviceLogits` over them against the host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backend.sampling.test_sampling_crowds import VOCAB, Crowd
from tests.backend.sampling.test_sampling_reference import next_row, sequence_of
from tests.cuda import twins
from tests.cuda.calls import Call
from tests.cuda.interpreting import interpret
from tests.fakes.sampling_plans import LateDevice, at, on_host
from trident_backend.engine.cuda.names import COPY_ROWS, rank
from trident_backend.engine.cuda.sampling_kernels import SamplingKernels
from trident_backend.engine.gpu.device import DeviceMemoryError
from trident_backend.engine.gpu.device_logits import DeviceLogits
from trident_backend.engine.gpu.names import Sampling
from trident_backend.engine.gpu.program import Kernel, Program
from trident_backend.engine.numpy_kernels import NumpyKernels
from trident_backend.engine.protocol import CHUNK_WIDTH, FloatArray
from trident_backend.sampling.sampler import Sampler
from trident_backend.sequences.choices import NOT_FINITE
from trident_backend.sequences.sampling_params import SamplingParams
from trident_compiler.cuda.kernel_spec import KernelSpec
from trident_compiler.cuda.sampling_kernels import MAX_PAIRS, MAX_ROWS, TOP_K_SIZES, sampling_specs

Array = npt.NDArray[Any]
#: Below, at and above a chunk; of whole chunks and not; of one block of a row and of several; more than all find.
SIZES = (70, 256, 600, 4096, 9000)
NUM_ROWS = 7


def _logits(vocab_size: int, num_rows: int = NUM_ROWS) -> FloatArray:
    """Rows with equals, with banned tokens, with both zeros, all alike, of banned tokens alone, and of no numbers."""
    rng = np.random.default_rng(vocab_size)
    logits = rng.normal(0, 4, (num_rows, vocab_size)).astype(np.float32)
    logits[1::3] = np.round(logits[1::3] / 4)
    logits[1::3][rng.random(logits[1::3].shape) < 0.2] = -0.0
    logits[2::3][rng.random(logits[2::3].shape) < 0.5] = -np.inf
    logits[3], logits[4] = 1.5, -np.inf
    logits[5, [3, 60]] = np.nan, -np.nan
    logits[6, 40] = np.inf
    return logits


def _run(
    spec: KernelSpec, grid: tuple[int, int, int], given: Mapping[str, Array | int], out: Mapping[str, Array]
) -> None:
    """Run the source and the twin, hold them to each other, and leave the source's results in `out`."""
    types, constants = dict(spec.types), dict(spec.constants)
    twin = {name: array.copy() for name, array in out.items()}
    interpret(spec.function, grid, types, constants, {**given, **out}, backwards=True)
    twins.run(spec.function, Call.on_arrays(grid, types, constants, {**given, **twin}))
    for name, array in out.items():
        np.testing.assert_allclose(array, twin[name], rtol=3e-6, atol=0, err_msg=spec.function)


def _junk(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    return np.full(shape, np.nan if np.dtype(dtype).kind == "f" else -77, dtype)


def _buffer(logits: FloatArray) -> tuple[Array, Array]:
    """The rows somewhere in a larger buffer, in any order."""
    rows = np.random.default_rng(0).permutation(len(logits) + 3)[: len(logits)].astype(np.int32)
    buffer = np.full((len(logits) + 3, logits.shape[1]), np.nan, np.float32)
    buffer[rows] = logits
    return buffer, rows


@pytest.mark.parametrize("vocab_size", SIZES)
def test_sampling_kernels_whole_rows_are_searched_as_numpy_searches_them(vocab_size: int) -> None:
    logits = _logits(vocab_size)
    buffer, rows = _buffer(logits)
    specs, limits = sampling_specs(vocab_size, 12)
    inputs = {"logits": buffer, "rows": rows}
    ids, values = _junk((NUM_ROWS,), np.int32), _junk((NUM_ROWS,), np.float32)
    _run(specs[Sampling.ARGMAX], (NUM_ROWS, 1, 1), inputs, {"ids": ids, "values": values})
    replaced = np.where(np.isnan(logits), np.inf, logits)
    np.testing.assert_array_equal(ids, replaced.argmax(axis=1))
    np.testing.assert_array_equal(values, replaced.max(axis=1))

    asked = logits[np.arange(NUM_ROWS), [5, 1, 9, 0, 2, 7, 8]]
    asked[0] = 0.123
    ties = _junk((NUM_ROWS, limits.num_ties), np.int32)
    _run(specs[Sampling.FIND_TIES], (NUM_ROWS, 1, 1), {**inputs, "values": asked}, {"ids": ties})
    for row, value, found in zip(logits, asked, ties, strict=True):
        expected = np.flatnonzero(row == value)[: limits.num_ties]
        np.testing.assert_array_equal(
            found, np.pad(expected, (0, len(found) - len(expected)), constant_values=vocab_size)
        )


@pytest.mark.parametrize(("vocab_size", "count"), [(70, 64), (70, 1), (9000, 64), (256, 256)])
def test_sampling_kernels_the_largest_are_found_and_put_in_order(vocab_size: int, count: int) -> None:
    logits = _logits(vocab_size)
    buffer, rows = _buffer(logits)
    specs, limits = sampling_specs(vocab_size, 12)
    shape = NUM_ROWS, count
    keys, key_ids, ids = (_junk(shape, np.int32) for _ in range(3))
    values = _junk(shape, np.float32)
    found = {"keys": keys, "key_ids": key_ids}
    select, order = specs[Sampling.top_k(limits.top_k[0])], specs[rank(limits.top_k[0])]
    _run(select, (NUM_ROWS, 1, 1), {"logits": buffer, "rows": rows, "count": count}, found)
    grid = (NUM_ROWS, -(-count // int(dict(order.constants)["BLOCK"])), 1)
    _run(order, grid, {**found, "count": count}, {"values": values, "ids": ids})
    np.testing.assert_array_equal(values[:5], -np.sort(-logits[:5], axis=1)[:, :count])
    # Also where there is no number, ids are tokens, of which none comes twice.
    np.testing.assert_array_equal(np.take_along_axis(logits, ids, axis=1), values)
    assert all(len(set(row)) == count for row in ids.tolist())
    # Of equals to the smallest, the lowest ids.
    np.testing.assert_array_equal(ids[3], np.arange(count))


@pytest.mark.parametrize("vocab_size", SIZES)
def test_sampling_kernels_weights_are_summed_by_chunk(vocab_size: int) -> None:
    logits = _logits(vocab_size)[:4]
    buffer, rows = _buffer(logits)
    spec = sampling_specs(vocab_size, 12)[0][Sampling.CHUNK_EXP_SUMS]
    maxima, floors = logits.max(axis=1), np.array([-np.inf, -1, 0, 1.5], np.float32)
    inverses = np.array([0.5, 1e-30, 3, 1e30], np.float32)
    num_chunks = -(-vocab_size // CHUNK_WIDTH)
    sums = _junk((4, num_chunks), np.float32)
    grid = (4, -(-num_chunks // int(dict(spec.constants)["CHUNKS"])), 1)
    inputs = {"logits": buffer, "rows": rows, "maxima": maxima, "inverses": inverses, "floors": floors}
    _run(spec, grid, inputs, {"sums": sums})
    exponents = (logits.astype(np.float64) - maxima[:, None]) * inverses[:, None]
    weights = np.where(logits < floors[:, None], 0, np.exp(exponents))
    expected = np.add.reduceat(weights, np.arange(0, vocab_size, CHUNK_WIDTH), axis=1)
    np.testing.assert_allclose(sums, expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("vocab_size", [70, 1500])
def test_sampling_kernels_rows_are_changed_as_numpy_changes_them(vocab_size: int) -> None:
    rng, logits = np.random.default_rng(1), _logits(vocab_size)
    buffer, rows = _buffer(logits)
    specs, _ = sampling_specs(vocab_size, 12)
    inputs = {"logits": buffer, "rows": rows}
    grid = (NUM_ROWS, -(-vocab_size // 1024), 1)
    copied = _junk(logits.shape, np.float32)
    _run(specs[COPY_ROWS], grid, inputs, {"changed": copied})
    np.testing.assert_array_equal(copied, logits)

    places = rng.choice(logits.size, 60, replace=False)
    pairs = np.stack(np.divmod(places, vocab_size), axis=1).astype(np.int32)
    values = rng.normal(size=60).astype(np.float32)
    written, expected = logits.copy(), logits.copy()
    given = {"pairs": pairs, "values": values, "num_pairs": 60}
    _run(specs[Sampling.WRITE], (1, 1, 1), given, {"changed": written})
    expected.reshape(-1)[places] = values
    np.testing.assert_array_equal(written, expected)

    in_buffer = np.stack([rows[pairs[:, 0]], pairs[:, 1]], axis=1)
    read = _junk((60,), np.float32)
    _run(specs[Sampling.READ], (1, 1, 1), {"logits": buffer, "pairs": in_buffer, "num_pairs": 60}, {"values": read})
    np.testing.assert_array_equal(read, logits.reshape(-1)[places])

    table = rng.normal(size=(9, vocab_size)).astype(np.float32)
    table[rng.random(table.shape) < 0.5] = np.nan
    table_rows = rng.permutation(9)[:NUM_ROWS].astype(np.int32)
    repetitions = rng.uniform(0.5, 2, NUM_ROWS).astype(np.float32)
    penalised = _junk(logits.shape, np.float32)
    given = {**inputs, "table": table, "table_rows": table_rows, "repetitions": repetitions}
    _run(specs[Sampling.PENALISE], grid, given, {"changed": penalised})
    scaled = np.where(logits < 0, logits * repetitions[:, None], logits / repetitions[:, None])
    expected = np.where(np.isnan(table[table_rows]), logits, scaled - table[table_rows])
    np.testing.assert_array_equal(penalised, expected)

    words = rng.integers(0, 2**32, (NUM_ROWS, -(-vocab_size // 32)), dtype=np.uint32)
    masked = _junk(logits.shape, np.float32)
    _run(specs[Sampling.APPLY_TOKEN_BITMASK], grid, {**inputs, "masks": words.view(np.int32)}, {"changed": masked})
    ids = np.arange(vocab_size)
    is_allowed = words[:, ids // 32] >> (ids % 32).astype(np.uint32) & np.uint32(1) == 1
    np.testing.assert_array_equal(masked, np.where(is_allowed, logits, np.float32(-np.inf)))


def test_sampling_kernels_more_equals_are_counted_than_sixteen_bits_hold() -> None:
    vocab_size = 2**16 + 34
    logits = np.zeros((1, vocab_size), np.float32)
    logits[0, [vocab_size - 1, 7]] = 1
    keys, ids = _junk((1, 64), np.int32), _junk((1, 64), np.int32)
    spec = sampling_specs(vocab_size, 1)[0][Sampling.top_k(64)]
    given: dict[str, Array | int] = {"logits": logits, "rows": np.zeros(1, np.int32), "count": 64}
    _run(spec, (1, 1, 1), given, {"keys": keys, "key_ids": ids})
    assert set(ids[0].tolist()) == {vocab_size - 1, *range(63)}


def test_sampling_specs_blocks_of_a_row_are_as_many_as_a_byte_counts() -> None:
    for vocab_size in (1, 70, 32_000, 262_144, 4_000_000):
        specs, limits = sampling_specs(vocab_size, 2000)
        assert limits.max_chosen == limits.num_table_rows == MAX_ROWS
        assert limits.max_pairs == MAX_PAIRS
        assert limits.top_k == tuple(sorted({min(size, vocab_size) for size in TOP_K_SIZES}))
        block = int(dict(specs[Sampling.top_k(limits.top_k[0])].constants)["BLOCK"])
        assert block & (block - 1) == 0
        assert -(-vocab_size // block) <= 255
        assert block < 2**15
    assert sampling_specs(100, 3)[1].max_chosen == 3


class SamplingDevice(LateDevice):
    """An engine's kernels of sampling on a device of their own, which holds them to the memory that it has given.

    Args:
        vocab_size: V.
        max_rows: of the buffer that the logits lie in.
        interprets: the kernels' source runs, instead of their twins.
    """

    def __init__(self, vocab_size: int, max_rows: int, *, interprets: bool = False) -> None:
        super().__init__()
        specs, limits = sampling_specs(vocab_size, max_rows)
        self.kernels = {name: _compiled(spec) for name, spec in specs.items()}
        self._interprets = interprets
        self.num_runs: Counter[str] = Counter()
        self.program = Program(vocab_size, 1, 0, (), (), (), (), (), "bf16", limits, self.kernels)
        standing_in: Any = self
        self.operations = SamplingKernels(standing_in, self.program, standing_in)
        self._shape = max_rows, vocab_size
        self._address = self.allocate(max_rows * vocab_size * 4)

    def launch(self, name: str, grid: tuple[int, int, int], arguments: Mapping[str, int | float]) -> None:
        """Run a kernel as late as may be."""
        self.num_runs[name] += 1
        kernel = self.kernels[name]
        types = dict(kernel.parameters)
        assert arguments.keys() == types.keys(), name
        assert all(arguments[key] % 16 == 0 for key, dtype in types.items() if dtype.startswith("*")), name
        self.enqueue(lambda: self._run(kernel, grid, types, arguments))

    def logits(self, array: FloatArray, seed: int = 0) -> DeviceLogits:
        """Put a step's logits somewhere in the buffer, whose other rows are no numbers."""
        places = np.random.default_rng(seed).permutation(self._shape[0])[: len(array)].astype(np.int32)
        buffer = at(self._address, np.float32, self._shape)
        buffer[...] = np.nan
        buffer[places] = array
        return DeviceLogits(self.operations, self._address, places)

    def _run(
        self, kernel: Kernel, grid: tuple[int, int, int], types: Mapping[str, str], arguments: Mapping[str, int | float]
    ) -> None:
        if self._interprets:
            interpret(kernel.function, grid, types, kernel.constants, arguments, view=self._view)
        else:
            twins.run(kernel.function, Call(grid, types, kernel.constants, arguments, self._view))

    def _view(self, address: int, num_bytes: int) -> npt.NDArray[np.uint8]:
        inside = any(
            base <= address and address + num_bytes <= base + memory.size - 256 for base, memory in self._memory.items()
        )
        assert inside, f"{num_bytes} bytes at {address:#x} are no memory of the device"
        return at(address, np.uint8, (num_bytes,))


def _compiled(spec: KernelSpec) -> Kernel:
    """What the compiler would say of a kernel."""
    return Kernel("", "", spec.function, 32 * spec.num_warps, 0, spec.types, dict(spec.constants))


MAX_BUFFER_ROWS = 300
_DEVICES: dict[tuple[int, bool], SamplingDevice] = {}
#: Twins with many rows, and the source with a few.
KINDS = ((70, False), (600, False), (4096, False), (70, True))


def device_of(vocab_size: int, *, interprets: bool = False) -> SamplingDevice:
    key = vocab_size, interprets
    if key not in _DEVICES:
        _DEVICES[key] = SamplingDevice(vocab_size, 20 if interprets else MAX_BUFFER_ROWS, interprets=interprets)
    return _DEVICES[key]


def _step(vocab_size: int, num_rows: int) -> FloatArray:
    """A step's logits, with equals and with banned tokens among them."""
    rng = np.random.default_rng(vocab_size)
    logits = rng.normal(0, 4, (num_rows, vocab_size)).astype(np.float32)
    logits[::3] = np.round(logits[::3])
    logits[1::3][rng.random(logits[1::3].shape) < 0.5] = -np.inf
    logits[:, 1] = 1.0
    return logits


@pytest.mark.parametrize(("vocab_size", "interprets"), KINDS)
def test_sampling_kernels_device_logits_are_as_on_the_host(vocab_size: int, interprets: bool) -> None:
    """Every operation, with more rows than one run takes where twins compute."""
    num_rows = 4 if interprets else 150
    array, rng = _step(vocab_size, num_rows), np.random.default_rng(2)
    rows = np.sort(rng.choice(num_rows, num_rows * 9 // 10, replace=False))
    found = device_of(vocab_size, interprets=interprets).logits(array)
    host = on_host(array, NumpyKernels())
    every_row, every_id = np.arange(num_rows)[:, None], np.arange(vocab_size)
    for _ in range(1 if interprets else 2):
        ids, values = found.argmax(rows)
        np.testing.assert_array_equal(ids, host.argmax(rows)[0])
        np.testing.assert_array_equal(values, host.argmax(rows)[1])
        maxima, temperatures = host.argmax(rows)[1], rng.uniform(0.3, 5, len(rows))
        for floors in (None, maxima - 2):
            sums, expected = (each.chunk_exp_sums(rows, maxima, temperatures, floors) for each in (found, host))
            np.testing.assert_allclose(sums, expected, rtol=1e-5, atol=1e-30)
        for count in (1, 64, 65, vocab_size):
            values, ids = found.top_k(rows[:20], min(count, vocab_size))
            np.testing.assert_array_equal(values, host.top_k(rows[:20], min(count, vocab_size))[0])
            np.testing.assert_array_equal(found.read(rows[:20, None], ids), values)
        values, counts = host.read(rows, rows % vocab_size), rng.integers(1, 100, len(rows))
        is_finite = np.isfinite(values)
        for mine, others in zip(
            found.find_ties(rows[is_finite], values[is_finite], counts[is_finite]),
            host.find_ties(rows[is_finite], values[is_finite], counts[is_finite]),
            strict=True,
        ):
            np.testing.assert_array_equal(mine, others)
        words = rng.integers(0, 2**32, (len(rows), -(-vocab_size // 32)), dtype=np.uint32)
        written, ids = np.divmod(np.sort(rng.choice(array.size, 40, replace=False)), vocab_size)
        for each in (found, host):
            each.apply_token_bitmask(rows, words)
            each.write(written, ids, np.linspace(-1, 1, 40).astype(np.float32))
        np.testing.assert_array_equal(found.read(every_row, every_id), host.array)


@pytest.mark.parametrize(("vocab_size", "num_rows"), [(4096, 40), (600, 120)])
def test_sampling_kernels_more_pairs_than_one_run_takes(vocab_size: int, num_rows: int) -> None:
    logits = device_of(vocab_size).logits(_step(vocab_size, num_rows))
    rows, ids = (part.reshape(-1) for part in np.indices((num_rows, vocab_size)))
    values = np.arange(len(rows), dtype=np.float32)
    logits.write(rows, ids, values)
    np.testing.assert_array_equal(logits.read(rows, ids), values)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_sampling_kernels_the_sampler_chooses_on_the_device_what_it_chooses_on_the_host(seed: int) -> None:
    crowd = Crowd(seed)
    if len(crowd.rows) > MAX_BUFFER_ROWS:
        return
    array, masks = crowd.logits.copy(), crowd.row_masks(list(range(len(crowd.rows))))
    if seed % 3 == 0:
        array[seed % len(array), seed % VOCAB] = (np.nan, np.inf)[seed % 2]
    expected = Sampler(VOCAB).choose(on_host(array, NumpyKernels()), crowd.rows, masks)
    found = Sampler(VOCAB).choose(device_of(VOCAB).logits(array, seed), crowd.rows, masks)
    assert found.token_ids == expected.token_ids
    assert found.log_probs.keys() == expected.log_probs.keys()
    for number, (log_prob, top_ids, top_log_probs) in expected.log_probs.items():
        if not (np.isnan(array[number]).any() or np.isposinf(array[number]).any()) and np.isfinite(array[number]).any():
            assert found.log_probs[number].log_prob == pytest.approx(log_prob, abs=1e-5)
            assert found.log_probs[number].top_ids == top_ids
            assert found.log_probs[number].top_log_probs == pytest.approx(top_log_probs, abs=1e-5)


def test_sampling_kernels_top_p_among_equals_is_the_hosts() -> None:
    """More equals than a kernel finds, so that the host looks at some rows itself."""
    array = np.zeros((60, VOCAB), np.float32)
    array[::2] = np.round(np.random.default_rng(0).normal(0, 1, (30, VOCAB)))
    rows = [next_row(sequence_of(SamplingParams(1.0, top_p=0.6, seed=seed), [1])) for seed in range(60)]
    expected = Sampler(VOCAB).choose(on_host(array, NumpyKernels()), rows)
    assert Sampler(VOCAB).choose(device_of(VOCAB).logits(array), rows).token_ids == expected.token_ids


def test_sampling_kernels_a_greedy_step_is_one_launch_and_a_row_of_nan_has_no_token() -> None:
    device = SamplingDevice(VOCAB, 100)
    array = np.random.default_rng(0).normal(size=(90, VOCAB)).astype(np.float32)
    array[50] = np.nan
    rows = [next_row(sequence_of(replace(SamplingParams(), seed=seed), [1])) for seed in range(90)]
    tokens = Sampler(VOCAB).choose(device.logits(array), rows).token_ids
    assert device.num_runs == {"argmax": 1}
    assert tokens == [NOT_FINITE if number == 50 else token for number, token in enumerate(array.argmax(1).tolist())]


def test_sampling_kernels_closing_frees_everything() -> None:
    device = SamplingDevice(70, 4)
    device.operations.close()
    assert device.num_allocations == 1, "the logits' own memory is the engine's"


class ScarceDevice(LateDevice):
    """A device whose memory is enough for so many allocations."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def allocate(self, num_bytes: int) -> int:
        if self.num_allocations == self._most:
            raise DeviceMemoryError("no memory")
        return super().allocate(num_bytes)


def test_sampling_kernels_too_little_memory_leaves_none_behind() -> None:
    for most in range(5):
        device: Any = ScarceDevice(most)
        with pytest.raises(DeviceMemoryError):
            SamplingKernels(device, device_of(70).program, device)
        assert device.num_allocations == 0
