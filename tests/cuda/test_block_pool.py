"""The pool of blocks on a GPU that is a double: caches lie apart, and blocks are copied through all layers in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from tests.cuda.interpreting import interpret
from tests.tensorrt.double import faults
from tests.tensorrt.double.engines import installed
from tests.tensorrt.double.gpu import GPUS
from trident_backend.engine.gpu.block_pool import BlockPool, block_bytes_of
from trident_backend.engine.gpu.device import Device, DeviceMemoryError
from trident_backend.engine.gpu.program import AttentionCall, AttentionKind, Kernel, Program, SamplingLimits
from trident_backend.engine.protocol import EngineSpec
from trident_ensemble.contract.errors import ArtifactError, EngineError

Bytes = npt.NDArray[np.uint8]
BLOCK, NUM_BLOCKS = 16, 7
SPEC = EngineSpec(
    vocab_size=10, max_num_seqs=3, max_num_tokens=8, max_seq_len=50, block_size=BLOCK, num_blocks=NUM_BLOCKS
)
NAMES = ("write", "few", "many", "merge_few", "merge_many")
#: Heads of values may have another size, and layers differ in heads.
KINDS = (AttentionKind(2, 4, 24, 10, 0, 16, 64, *NAMES), AttentionKind(3, 1, 8, 8, 40, 16, 64, *NAMES))
PARAMETERS = (("pool", "*i32"), ("geometry", "*i64"), ("copies", "*i32"), ("num_copies", "i32"))
KERNEL = Kernel("kernels/copy.cubin", "copy_blocks", "attention.copy_blocks", 128, 0, PARAMETERS, {"CHUNK": 128})
#: The layer of each attention, and its kind; one layer's cache is used twice.
LAYERS = ((0, 0), (1, 1), (2, 0), (2, 0))
#: Bytes of a block's keys and values in each layer, in fp16.
SIZES = {0: (2 * 16 * 24 * 2, 2 * 16 * 10 * 2), 1: (3 * 16 * 8 * 2,) * 2, 2: (2 * 16 * 24 * 2, 2 * 16 * 10 * 2)}


def program_of(cache_dtype: str = "fp16") -> Program:
    body = tuple(AttentionCall(layer, kind, "q", "k", "v", "out", {}) for layer, kind in LAYERS)
    sampling = SamplingLimits(max_rows=8, max_chosen=4, max_pairs=4, num_ties=2, num_table_rows=4, top_k=(2,))
    return Program(10, 50, 0, (), (), KINDS, body, (), cache_dtype, sampling, {"copying": KERNEL})


@contextmanager
def machine() -> Iterator[Device]:
    """A machine of its own, which has everything back at the end."""
    with installed():
        device = Device(0)
        yield device
        device.close()
        assert not GPUS.leaks()


def caches(pool: BlockPool) -> list[Bytes]:
    """The memory of all keys and values, `[num_blocks, bytes]`."""
    addresses = [
        (address, size)
        for layer, sizes in SIZES.items()
        for address, size in zip((pool.key_cache(layer), pool.value_cache(layer)), sizes, strict=True)
    ]
    return [GPUS.view(address, NUM_BLOCKS * size).reshape(NUM_BLOCKS, size) for address, size in addresses]


def fill(pool: BlockPool, seed: int) -> list[Bytes]:
    """Write into all blocks, and return what was written."""
    rng = np.random.default_rng(seed)
    for cache in caches(pool):
        cache[:] = rng.integers(0, 256, cache.shape)
    return [cache.copy() for cache in caches(pool)]


class Copies:
    """Launches `attention.copy_blocks` late: as its contract says, in numpy, or its source."""

    def __init__(self, device: Device, *, interprets: bool = False) -> None:
        self._device = device
        self._compute = self._interpret if interprets else self._run
        self.launched: list[int] = []

    def launch(self, name: str, grid: tuple[int, int, int], arguments: Mapping[str, int | float]) -> None:
        assert name == "copying"
        assert set(arguments) == {name for name, _ in PARAMETERS}
        self.launched.append(int(arguments["num_copies"]))
        GPUS.enqueue(
            self._device.stream, lambda: self._compute(grid, {key: int(each) for key, each in arguments.items()})
        )

    def _interpret(self, grid: tuple[int, int, int], numbers: Mapping[str, int]) -> None:
        interpret(KERNEL.function, grid, dict(PARAMETERS), KERNEL.constants, numbers, view=GPUS.view)

    def _run(self, grid: tuple[int, int, int], numbers: Mapping[str, int]) -> None:
        geometry = GPUS.view(numbers["geometry"], grid[0] * 16).view(np.int64).reshape(-1, 2)
        copies = GPUS.view(numbers["copies"], numbers["num_copies"] * 8).view(np.int32).reshape(-1, 2)
        for begin, size in geometry.tolist():
            assert (begin % 4, size % 4) == (0, 0)
            for source, target in copies.tolist():
                words = [
                    GPUS.view(numbers["pool"] + 4 * (begin + size * block), 4 * size) for block in (source, target)
                ]
                words[1][:] = words[0]


def test_block_pool_caches_of_all_layers_lie_apart_at_multiples_of_256_bytes() -> None:
    with machine() as device:
        pool = BlockPool(device, program_of(), SPEC)
        written = fill(pool, 0)
        for cache, expected in zip(caches(pool), written, strict=True):
            np.testing.assert_array_equal(cache, expected)
        assert all(pool.key_cache(layer) % 256 == pool.value_cache(layer) % 256 == 0 for layer in SIZES)
        pool.close()


@pytest.mark.parametrize(("dtype", "item_bytes"), [("fp32", 4), ("bf16", 2), ("fp16", 2), ("fp8e4nv", 1)])
def test_block_pool_a_block_has_the_bytes_of_its_keys_and_values(dtype: str, item_bytes: int) -> None:
    """And the pool has as many for each block, but for what aligns caches."""
    numbers = sum(sum(sizes) for sizes in SIZES.values()) // 2
    assert block_bytes_of(program_of(dtype), BLOCK) == numbers * item_bytes
    with machine() as device:
        before = device.free_bytes()
        pool = BlockPool(device, program_of(dtype), SPEC)
        taken = before - device.free_bytes() - NUM_BLOCKS * numbers * item_bytes
        assert 0 <= taken <= 2 * len(SIZES) * (256 + 16) + SPEC.max_num_seqs * 8
        pool.close()


@pytest.mark.parametrize("seed", range(8))
def test_block_pool_copies_blocks_of_every_layer_in_order(seed: int) -> None:
    """A block may be written, read and written again, and there may be more copies than are sent at a time."""
    rng = np.random.default_rng(seed)
    with machine() as device:
        pool, kernels = BlockPool(device, program_of(), SPEC), Copies(device)
        expected = fill(pool, seed)
        for _ in range(3):
            copies = rng.integers(0, NUM_BLOCKS, (rng.integers(0, 9), 3)).astype(np.int32)
            pool.copy(kernels, copies)
            device.synchronize()
            for source, target, _ in copies:
                for cache in expected:
                    cache[target] = cache[source]
            for cache, wanted in zip(caches(pool), expected, strict=True):
                np.testing.assert_array_equal(cache, wanted)
        pool.close()


def test_block_pool_a_step_without_copies_costs_nothing() -> None:
    with machine() as device:
        pool, kernels = BlockPool(device, program_of(), SPEC), Copies(device)
        device.synchronize()
        pool.copy(kernels, np.empty((0, 3), np.int32))
        assert not kernels.launched
        assert not GPUS.streams[device.stream].queue
        pool.copy(kernels, np.array([[0, 1, 5]] * 4, np.int32))
        assert kernels.launched == [3, 1]
        device.synchronize()
        pool.close()


def test_block_pool_the_kernel_copies_blocks() -> None:
    """Its source, in Triton's interpreter; a block is no whole number of its chunks."""
    with machine() as device:
        pool, kernels = BlockPool(device, program_of(), SPEC), Copies(device, interprets=True)
        expected = fill(pool, 1)
        pool.copy(kernels, np.array([[1, 4, 16], [4, 6, 3], [0, 4, 1]], np.int32))
        device.synchronize()
        for cache, wanted in zip(caches(pool), expected, strict=True):
            wanted[4] = wanted[1]
            wanted[6] = wanted[4]
            wanted[4] = wanted[0]
            np.testing.assert_array_equal(cache, wanted)
        pool.close()


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_block_pool_memory_that_there_is_not_is_an_error_that_leaves_nothing(nth: int) -> None:
    with machine() as device:
        faults.order("cudaMalloc", nth, code=2)
        with pytest.raises(DeviceMemoryError):
            BlockPool(device, program_of(), SPEC)


def test_block_pool_a_geometry_that_cannot_be_sent_leaves_nothing() -> None:
    with machine() as device:
        faults.order("cudaMemcpyAsync")
        with pytest.raises(EngineError, match="cudaMemcpyAsync"):
            BlockPool(device, program_of(), SPEC)


def test_block_pool_blocks_that_cannot_be_copied_are_refused() -> None:
    with machine() as device:
        with pytest.raises(ArtifactError, match=r"block_size: 1 tokens of layer 0 .* 16 bytes"):
            BlockPool(device, program_of("fp8e4nv"), replace(SPEC, block_size=1))
        with pytest.raises(ArtifactError, match=r"no attention\.copy_blocks"):
            BlockPool(device, replace(program_of(), kernels={}), SPEC)
