"""The host of our own kernels on a GPU that is a double: a small program's steps are what plain numpy computes."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cuda import small_programs
from tests.cuda.calls import Call
from tests.cuda.small_programs import SMALL, Small, build
from tests.cuda.small_steps import Sequence, history, new_sequence, pack, rows_of, small_machine, step
from tests.tensorrt.double import faults
from tests.tensorrt.double.gpu import GPUS
from trident_backend.engine.cuda import trial
from trident_backend.engine.cuda.program_file import read_program
from trident_backend.engine.factory import load_engine
from trident_backend.engine.gpu.device import Device
from trident_backend.engine.gpu.kernels import KernelLibrary
from trident_backend.engine.protocol import Engine, execute
from trident_ensemble.contract.errors import EngineError, EngineLostError
from trident_ensemble.contract.manifest import KVKind


@pytest.fixture(scope="module", autouse=True)
def machine() -> Iterator[None]:
    """The doubles; at the end nothing may be left on the GPU."""
    with small_machine():
        yield
        gc.collect()  # an error holds on to the frames that it left
        assert GPUS.leaks() == []


@pytest.fixture(autouse=True)
def nothing_fails_unasked() -> Iterator[None]:
    yield
    faults.clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine") / "1"
    build(folder)
    return folder


@pytest.fixture(scope="module")
def engine(machine: None, folder: Path) -> Iterator[Engine]:  # noqa: ARG001 (the doubles must be there)
    """An engine holds no state between the tests."""
    engine, _ = load_engine(folder)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def plain(machine: None, folder: Path) -> Iterator[Engine]:  # noqa: ARG001 (the doubles must be there)
    """An engine without graphs."""
    faults.order("a captured stream")
    engine, _ = load_engine(folder)
    yield engine
    engine.close()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


class Record:
    """What was called: uploads, launches of graphs, and launches of kernels with their grids."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_uploads = self.num_graphs = self.num_waits = 0
        self.launches: list[tuple[str, tuple[int, int, int]]] = []
        upload, launch, launch_kernel = Device.upload, Device.launch, KernelLibrary.launch
        synchronize = Device.synchronize

        def count_wait(device: Device) -> None:
            self.num_waits += 1
            synchronize(device)

        def count_upload(device: Device, *arguments: Any) -> None:
            self.num_uploads += 1
            upload(device, *arguments)

        def count_launch(device: Device, graph: Any) -> None:
            self.num_graphs += 1
            launch(device, graph)

        def keep(library: KernelLibrary, name: str, grid: tuple[int, int, int], arguments: Any) -> None:
            self.launches.append((name, grid))
            launch_kernel(library, name, grid, arguments)

        monkeypatch.setattr(Device, "upload", count_upload)
        monkeypatch.setattr(Device, "launch", count_launch)
        monkeypatch.setattr(Device, "synchronize", count_wait)
        monkeypatch.setattr(KernelLibrary, "launch", keep)

    def grids(self, name: str) -> list[tuple[int, int, int]]:
        return [grid for other, grid in self.launches if other == name]


def sequence(rng: np.random.Generator, length: int, first_block: int, num_computed: int = 0) -> Sequence:
    """Return a sequence with all blocks that it needs."""
    made = new_sequence(rng, length)
    made.table = list(range(first_block, first_block + -(-length // SMALL.block_size)))
    made.num_computed = num_computed
    return made


@pytest.mark.parametrize("seed", range(4))
def test_cuda_host_mixed_steps_are_what_numpy_computes(engine: Engine, seed: int) -> None:
    assert engine.spec.kv_kind is KVKind.BLOCKS
    assert engine.spec.supports_draft_tokens
    history(engine, seed)


def test_cuda_host_long_contexts_are_divided_among_programs(engine: Engine, rng: np.random.Generator) -> None:
    long, other = sequence(rng, SMALL.max_seq_len, 10), sequence(rng, 40, 100)
    while long.num_computed < SMALL.max_seq_len - 30:
        step(engine, [(long, min(40, SMALL.max_seq_len - 30 - long.num_computed))])
    step(engine, [(long, 1), (other, 9)])
    step(engine, [(long, 2), (other, 1)])
    step(engine, [(long, 20), (other, 20)])


def test_cuda_host_a_step_is_one_upload_and_two_graphs(
    engine: Engine, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Record(monkeypatch)
    first, second = sequence(rng, 40, 0), sequence(rng, 40, 10)
    num_graphs = 0
    for chunks, wanted in (
        ([(first, 17), (second, 3)], [0, 16, 19]),
        ([(first, 1), (second, 2)], [0, 2]),
        ([(first, 5)], []),
        ([(first, 1), (second, 1)], [0, 1]),
    ):
        engine.submit(pack(chunks, wanted))
        num_graphs += 1 + bool(wanted)
        assert (record.num_uploads, record.num_graphs, record.launches) == (1, num_graphs, [])
        record.num_uploads = 0
        assert record.num_waits == 0
        engine.collect()
        assert record.num_waits == 1
        record.num_waits = 0
        for one, count in chunks:
            one.num_computed += count
    engine.submit(pack([(first, 1)], copies=[(2, 30, 8), (30, 31, 4)]))
    assert (record.num_uploads, record.launches) == (2, [("cache.copy", (4, 1, 1))])
    engine.collect()


def test_cuda_host_submit_returns_while_the_device_computes(engine: Engine, rng: np.random.Generator) -> None:
    batch = pack([(sequence(rng, 20, 0), 15)])
    engine.submit(batch)
    assert any(stream.queue for stream in GPUS.streams.values())
    engine.collect()
    assert not any(stream.queue for stream in GPUS.streams.values())


def test_cuda_host_closing_waits_for_what_was_submitted(folder: Path, rng: np.random.Generator) -> None:
    engine, _ = load_engine(folder)
    engine.submit(pack([(sequence(rng, 20, 0), 15)]))
    engine.close()


def test_cuda_host_a_step_without_wanted_rows_only_writes_the_cache(engine: Engine, rng: np.random.Generator) -> None:
    one, other = sequence(rng, 30, 0), sequence(rng, 30, 10)
    assert step(engine, [(one, 10), (other, 1)], wanted=[]).shape == (0, engine.spec.vocab_size)
    step(engine, [(one, 1), (other, 9)])


def test_cuda_host_copies_keep_their_order_and_come_first(engine: Engine, rng: np.random.Generator) -> None:
    first = sequence(rng, 40, 0)
    step(engine, [(first, 30)])
    second, third = Sequence([*first.tokens[:21], 3, 4, 5]), Sequence([*first.tokens[:21], 6, 7])
    # The third takes from the second what that gets in the same step; the first goes on in the block that is copied.
    second.table, third.table = [0, 1, 50], [0, 1, 51]
    second.num_computed = third.num_computed = 21
    first.num_computed = 21
    step(engine, [(first, 4), (second, 2), (third, 1)], copies=[(2, 50, 5), (50, 51, 5)])
    step(engine, [(first, 1), (second, 1), (third, 1)])


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine whose largest steps have no graph."""
    folder = tmp_path_factory.mktemp("large") / "1"
    build(folder, LARGE)
    return folder


LARGE = Small(max_num_seqs=3, max_num_tokens=540, max_seq_len=560, num_blocks=220)


def test_cuda_host_every_kernel_is_on_the_device_before_anything_is_launched(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of steps that are too large to be captured too, which nothing launches before a request does."""
    launch_kernel, others, found = KernelLibrary.launch, set(GPUS.libraries), []

    def keep(*arguments: Any) -> None:
        found.append([loaded.is_on_device for each, loaded in GPUS.libraries.items() if each not in others])
        launch_kernel(*arguments)

    monkeypatch.setattr(KernelLibrary, "launch", keep)
    load_engine(large)[0].close()
    files = {kernel.file for kernel in read_program(large).kernels.values()}
    assert found[0] == [True] * len(files)


def test_cuda_host_steps_larger_than_all_graphs_have_grids_of_their_own_size(
    large: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Record(monkeypatch)
    engine, _ = load_engine(large)
    one, other = sequence(rng, 540, 0), sequence(rng, 40, 100)
    record.launches.clear()
    record.num_graphs = 0
    step(engine, [(one, 520), (other, 2)])
    step(engine, [(one, 1), (other, 1)])
    assert record.num_graphs == 2  # of the second step: body and head of the first are both too large
    assert record.grids("embed") == [(522, 1, 1)]
    assert record.grids("cache.write") == [(522, 1, 1)] * 2
    assert record.grids("queries.32") == [(-(-522 // 32), 1, 1)] * 2
    assert record.grids("logits.32") == [(-(-522 // 32), 1, 1)]
    assert not {"queries.4", "queries.16", "logits.16"} & {name for name, _ in record.launches}
    assert record.grids("attend.few.0") == [(1, 2, 1)]
    engine.close()


def test_cuda_host_without_graphs_nothing_is_launched_for_nothing(
    plain: Engine, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Record(monkeypatch)
    one = sequence(rng, 40, 0)
    step(plain, [(one, 1)])
    names = [name for name, _ in record.launches]
    products = ["queries.4", "keys.4", "values.4"]
    layers = [[*products, "cache.write", f"attend.few.{window}", "outs.4"] for window in small_programs.WINDOWS]
    assert names[: names.index("read")] == ["embed", *layers[0], *layers[1], "pick", "logits.4"]
    record.launches.clear()
    step(plain, [(one, 12)])
    assert record.grids("cache.write") == [(16, 1, 1)] * 2
    assert {name for name, _ in record.launches if "attend" in name} == {"attend.many.0", "attend.many.11"}
    assert not any(name.startswith("merge") for name, _ in record.launches)


def test_cuda_host_without_graphs_it_computes_the_same(plain: Engine, engine: Engine, rng: np.random.Generator) -> None:
    history(plain, seed=11, num_steps=8)
    one = sequence(rng, 30, 0)
    for num_computed, count in ((0, 9), (9, 1), (10, 3)):
        one.num_computed = num_computed
        batch = pack([(one, count)])
        assert np.array_equal(rows_of(execute(engine, batch)), rows_of(execute(plain, batch)))


#: What fails, and with which code; memory runs out at a graph's first launch.
FAILURES = [("a captured stream", faults.REFUSED), ("cudaGraphInstantiate", faults.REFUSED), ("cudaGraphLaunch", 2)]
#: By which of them fails: the size that has not all of its graphs, and the graphs of a step of one token.
LEFT = {1: (1, 0), 2: (1, 0), 4: (2, 2)}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("nth", LEFT)
def test_cuda_host_it_says_once_why_there_are_no_graphs(
    failure: tuple[str, int], nth: int, narrow: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A body whose head has no graph was never tried, and has none either."""
    call, code = failure
    size, num_graphs = LEFT[nth]
    faults.order(call, nth, code)
    engine, _ = load_engine(narrow)
    (warning,) = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert f"not all steps of {size} or more tokens have a CUDA graph: GPU 0: cuda" in warning
    record = Record(monkeypatch)
    one = sequence(np.random.default_rng(1), 20, 0)
    for count in (1, 4):
        step(engine, [(one, count)])
        assert record.num_graphs == num_graphs
    engine.close()


def test_cuda_host_a_graph_that_computes_something_else_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, rng: np.random.Generator
) -> None:
    embed = small_programs.embed
    calls = itertools.count(1)
    monkeypatch.setattr(trial, "_PIECE_BYTES", 512)

    def odd(call: Call) -> None:
        """Compute something else for the last token at every call of one size."""
        embed(call)
        if call.grid[0] == 24:
            hidden = call.read("out", (24, small_programs.WIDTH)).copy()
            hidden[-1] += np.float32(1e-4 * next(calls))
            call.store("out", hidden)

    monkeypatch.setitem(small_programs.TWINS, "small.embed", odd)
    engine, _ = load_engine(folder)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert [message.partition(" is")[0] for message in warnings] == ["the body of 24 tokens", "the head of 24 rows"]
    monkeypatch.setitem(small_programs.TWINS, "small.embed", embed)
    record = Record(monkeypatch)
    one = sequence(rng, 100, 0)
    step(engine, [(one, 20)])
    assert record.num_graphs == 0
    step(engine, [(one, 30)])
    assert record.num_graphs == 2
    engine.close()


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine with few sizes of steps, whose contexts are divided among programs."""
    folder = tmp_path_factory.mktemp("narrow") / "1"
    build(folder, Small(max_num_seqs=2, max_num_tokens=4, num_blocks=90))
    return folder


BODY, HEAD = "the body of", "the head of"
SKIPPED = {
    **dict.fromkeys(("embed", "cache.write", "attend.few.0", "attend.many.11", "merge.few", "merge.many"), BODY),
    **dict.fromkeys(("pick", "logits.4"), HEAD),
}


@pytest.mark.parametrize("skipped", SKIPPED)
def test_cuda_host_a_graph_that_lacks_a_launch_is_not_used(
    skipped: str, narrow: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What the launches themselves wrote before must not stand for what the graph does not write."""
    capture, launch_kernel = Device.capture, KernelLibrary.launch

    def capture_less(device: Device, enqueue: Any) -> Any:
        def launch_less(library: KernelLibrary, name: str, *arguments: Any) -> None:
            if name != skipped:
                launch_kernel(library, name, *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(KernelLibrary, "launch", launch_less)
            return capture(device, enqueue)

    monkeypatch.setattr(Device, "capture", capture_less)
    engine, _ = load_engine(narrow)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings
    assert {SKIPPED[skipped]} == {message[: len(BODY)] for message in warnings}
    assert all("does not compute the same logits" in message for message in warnings)
    one = sequence(np.random.default_rng(1), 20, 0)
    for count in (3, 1, 2):
        step(engine, [(one, count)])
    engine.close()


STEP_CALLS = [
    ("cudaMemcpyAsync", 1, "cudaMemcpyAsync"),
    ("cudaMemcpyAsync", 2, "cudaMemcpyAsync"),
    ("cuLaunchKernel", 1, "cuLaunchKernel of cache.copy"),
    ("cudaGraphLaunch", 1, "cudaGraphLaunch"),
    ("cudaGraphLaunch", 2, "cudaGraphLaunch"),
    ("cudaStreamSynchronize", 1, "cudaStreamSynchronize"),
    ("cudaSetDevice", 1, "cudaSetDevice"),
]


@pytest.mark.parametrize(("call", "nth", "text"), STEP_CALLS)
def test_cuda_host_a_call_that_fails_in_a_step_is_named_and_the_next_step_works(
    call: str, nth: int, text: str, engine: Engine, rng: np.random.Generator
) -> None:
    first, second = sequence(rng, 40, 0), sequence(rng, 40, 10)
    step(engine, [(first, 20), (second, 10)])
    faults.order(call, nth)
    with pytest.raises(EngineError, match="a step of 2 sequences failed") as failure:
        execute(engine, pack([(first, 1), (second, 5)], copies=[(1, 30, 4), (1, 31, 2)]))
    assert text in str(failure.value)
    assert not isinstance(failure.value, EngineLostError)
    # What was enqueued before the failure has been computed: the next step writes its inputs where that read them.
    assert not any(stream.queue for stream in GPUS.streams.values())
    step(engine, [(first, 1), (second, 5)])


def test_cuda_host_every_launch_that_fails_is_named_and_the_next_step_works(
    plain: Engine, rng: np.random.Generator
) -> None:
    one = sequence(rng, 40, 0)
    step(plain, [(one, 20)])
    named = set()
    for nth in range(1, 16):
        faults.order("cuLaunchKernel", nth)
        with pytest.raises(EngineError, match=r"cuLaunchKernel of .* failed: invalid value") as failure:
            execute(plain, pack([(one, 5)], [0, 4]))
        named.add(str(failure.value).split()[10])
        step(plain, [(one, 5)])
        one.num_computed -= 5
    assert named == {
        "embed",
        "queries.4",
        "keys.4",
        "values.4",
        "cache.write",
        "attend.many.0",
        "attend.many.11",
        "outs.4",
        "pick",
        "logits.4",
    }
