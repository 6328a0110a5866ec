"""The TensorRT host on a GPU and a TensorRT that are doubles: its numbers are transformers', and nothing leaks."""

from __future__ import annotations

import gc
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.checkpoints import make_checkpoint, reference_model
from tests.tensorrt.double import faults
from tests.tensorrt.double.engines import Limit, build, installed
from tests.tensorrt.double.gpu import GPUS
from trident_backend.engine.factory import load_engine
from trident_backend.engine.protocol import Engine, StepBatch, execute
from trident_ensemble.contract.errors import ArtifactError, EngineError, EngineLostError, PlanError, TridentError
from trident_ensemble.contract.manifest import KVKind, read_manifest, write_manifest

Floats = npt.NDArray[np.float32]
#: fp32 in another order; the logits are up to 6.
TOLERANCE = 1e-4
LIMIT = Limit()
#: CUDA's number for it.
OUT_OF_MEMORY = 2


class Sequence:
    """Tokens, and transformers' logits after each of them."""

    def __init__(self, model: Any, tokens: list[int]) -> None:
        self.tokens = tokens
        self.slot = -1
        self.num_computed = 0
        with torch.no_grad():
            self.logits: Floats = model(torch.tensor([tokens])).logits[0].numpy()


def pack(
    chunks: list[tuple[Sequence, int]],
    wanted: list[int] | None = None,
    copies: list[tuple[int, int, int]] | None = None,
) -> StepBatch:
    """The next tokens of each sequence; logits of all rows or of some."""
    lens = np.array([count for _, count in chunks], np.int32)
    past_lens = np.array([sequence.num_computed for sequence, _ in chunks], np.int32)
    token_ids = [sequence.tokens[sequence.num_computed + at] for sequence, count in chunks for at in range(count)]
    positions = [sequence.num_computed + at for sequence, count in chunks for at in range(count)]
    return StepBatch(
        token_ids=np.array(token_ids, np.int32),
        position_ids=np.array(positions, np.int32),
        past_lens=past_lens,
        subsequence_begins=np.concatenate([[0], np.cumsum(lens)]).astype(np.int32),
        block_indices=np.array([sequence.slot for sequence, _ in chunks], np.int32),
        block_indices_begins=np.arange(len(chunks) + 1, dtype=np.int32),
        max_context_len=int((past_lens + lens).max()),
        logit_rows=np.array(range(len(token_ids)) if wanted is None else wanted, np.int32),
        block_copies=np.array(copies or [], np.int32).reshape(-1, 3),
    )


def step(engine: Engine, chunks: list[tuple[Sequence, int]], **options: Any) -> Floats:
    """Compute; every row that is wanted must be transformers'."""
    batch = pack(chunks, **options)
    logits = rows_of(execute(engine, batch))
    expected = np.concatenate([one.logits[one.num_computed : one.num_computed + count] for one, count in chunks])
    np.testing.assert_allclose(logits, expected[batch.logit_rows], atol=TOLERANCE, rtol=0)
    for sequence, count in chunks:
        sequence.num_computed += count
    return logits


def rows_of(logits: Any) -> Floats:
    num_rows, vocab_size = logits.shape
    rows: Floats = logits.read(np.arange(num_rows)[:, None], np.arange(vocab_size)[None])
    return rows


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its heads are as large as TensorRT's alignment asks for, its vocabulary is not."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "llama", "llama", head_dim=32)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Any:
    return reference_model(checkpoint)


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine") / "1"
    build(checkpoint, folder, LIMIT)
    return folder


@pytest.fixture(autouse=True)
def machine() -> Iterator[None]:
    """The doubles; at the end of each test nothing may be left on the GPU."""
    with installed():
        yield
        gc.collect()  # an error holds on to the frames that it left
        assert GPUS.leaks() == []


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    engine, _ = load_engine(folder)
    yield engine
    engine.close()


@pytest.fixture
def sequence(model: Any) -> Callable[..., Sequence]:
    rng = np.random.default_rng(3)

    def make(length: int = 30, slot: int = -1, prefix: list[int] | None = None) -> Sequence:
        tokens = [*(prefix or []), *(int(token) for token in rng.integers(1, 400, length - len(prefix or [])))]
        made = Sequence(model, tokens)
        made.slot = slot
        return made

    return make


def history(engine: Engine, sequence: Callable[..., Sequence], seed: int, num_steps: int = 40) -> Floats:
    """Random steps: prompts in chunks, single tokens, slots with gaps, sequences that come and go."""
    rng = np.random.default_rng(seed)
    running: list[Sequence] = []
    last = np.empty(0, np.float32)
    for _ in range(num_steps):
        free = sorted(set(range(LIMIT.max_num_seqs)) - {one.slot for one in running})
        if free and rng.random() < 0.4:
            running.append(sequence(int(rng.integers(2, 50)), int(rng.choice(free))))
        room, chunks = LIMIT.max_num_tokens, []
        for one in rng.permutation(np.array(running, object)):
            most = min(len(one.tokens) - one.num_computed, room)
            if most and rng.random() < 0.8:
                chunks.append((one, 1 if rng.random() < 0.5 else int(rng.integers(1, most + 1))))
                room -= chunks[-1][1]
        if chunks:
            num_tokens = LIMIT.max_num_tokens - room
            wanted = [row for row in range(num_tokens) if rng.random() < 0.5]
            last = step(engine, chunks, wanted=wanted)
        running = [one for one in running if one.num_computed < len(one.tokens) and rng.random() < 0.95]
    return last


@pytest.mark.parametrize("seed", range(3))
def test_host_mixed_steps_give_transformers_logits(
    engine: Engine, sequence: Callable[..., Sequence], seed: int
) -> None:
    assert engine.spec.kv_kind is KVKind.SLOTS
    history(engine, sequence, seed)


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_host_each_family_runs(family: str, tmp_path: Path) -> None:
    folder, engine_folder = tmp_path / "checkpoint", tmp_path / "1"
    make_checkpoint(folder, family, head_dim=32)
    build(folder, engine_folder, LIMIT)
    engine, _ = load_engine(engine_folder)
    reference = reference_model(folder)
    sequences = [Sequence(reference, list(range(first, first + 40))) for first in (5, 100, 300)]
    for slot, one in enumerate(sequences):
        one.slot = 2 * slot
    step(engine, [(sequences[0], 20), (sequences[1], 1), (sequences[2], 30)])
    step(engine, [(sequences[0], 1), (sequences[1], 25), (sequences[2], 1)])
    step(engine, [(sequences[0], 1), (sequences[1], 1), (sequences[2], 1)])
    engine.close()


def test_host_values_may_have_another_size_than_keys(tmp_path: Path) -> None:
    """Prefixes are copied and slots are cut, of each cache by its own size."""
    folder, engine_folder = tmp_path / "checkpoint", tmp_path / "1"
    sizes = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "max_position_embeddings": 256, "kv_lora_rank": 32, "q_lora_rank": None,
        "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 24, "moe_intermediate_size": 32,
        "n_routed_experts": 4, "num_experts_per_tok": 2,
    }  # fmt: skip
    make_checkpoint(folder, "deepseek_v2", sizes=sizes)
    build(folder, engine_folder, replace(LIMIT, slot_len=64))
    engine, _ = load_engine(engine_folder)
    held = {block.num_bytes for block in GPUS.blocks}
    assert {4 * 64 * width * LIMIT.max_num_seqs for width in (32 + 8, 32)} <= held
    reference = reference_model(folder)
    first = Sequence(reference, list(range(5, 45)))
    first.slot = 4
    step(engine, [(first, 30)])
    second = Sequence(reference, [*first.tokens[:17], *range(200, 220)])
    second.slot, second.num_computed = 1, 17
    step(engine, [(second, 5), (first, 1)], copies=[(4, 1, 17)])
    step(engine, [(second, 1), (first, 1)])
    third = Sequence(reference, list(range(300, 320)))
    third.slot = 4
    step(engine, [(second, 1), (third, 12)])
    step(engine, [(second, 1), (third, 1)])
    engine.close()


def test_host_a_slot_is_copied_as_far_as_asked_and_copies_keep_their_order(
    engine: Engine, sequence: Callable[..., Sequence]
) -> None:
    first = sequence(40, 4)
    step(engine, [(first, 30)])
    second = sequence(40, 1, first.tokens[:17])
    third = sequence(40, 0, first.tokens[:9])
    second.num_computed, third.num_computed = 17, 9
    # The third takes from the second, what that has got in the same step.
    step(engine, [(second, 5), (first, 1), (third, 1)], copies=[(4, 1, 17), (1, 0, 9)])
    step(engine, [(second, 1), (first, 1), (third, 12)])


def caches() -> list[Floats]:
    """All keys and values on the GPU, `[slots, kv_heads, slot_len, head_dim]` for each layer's keys or values."""
    shape = (LIMIT.max_num_seqs, 2, LIMIT.slot_len, 32)
    size = 4 * int(np.prod(shape))
    found = [block.memory.view(np.float32).reshape(shape) for block in GPUS.blocks if block.num_bytes == size]
    assert len(found) == 2 * 3
    return found


@pytest.mark.usefixtures("engine")
def test_host_the_cache_begins_as_numbers() -> None:
    assert all(np.isfinite(cache).all() for cache in caches())


def test_host_nothing_is_left_in_a_slot_of_who_had_it_before(engine: Engine, sequence: Callable[..., Sequence]) -> None:
    """A request may end in NaN, and a mask does not keep NaN out."""
    kept = sequence(30, 0)
    ruined = [sequence(30, slot) for slot in (2, 3, 4)]
    step(engine, [(kept, 20), *((one, 14) for one in ruined)])
    for cache in caches():
        cache[0, :, 12:20], cache[2:4, :, :14], cache[4, :, 13] = np.nan, np.nan, np.nan
    others = sequence(20, 1)
    step(engine, [(others, 1)])  # slots that idle write what they read
    assert np.isnan(rows_of(execute(engine, pack([(ruined[2], 2)])))).any()
    copied, new = sequence(30, 2, kept.tokens[:9]), sequence(30, 3)
    kept.num_computed, copied.num_computed = 12, 9
    step(engine, [(kept, 4), (copied, 4), (new, 4)], copies=[(0, 2, 9)])
    step(engine, [(kept, 1), (copied, 1), (new, 1), (others, 1)])


def test_host_nothing_is_left_in_a_slot_where_more_is_copied_than_was_written(
    engine: Engine, sequence: Callable[..., Sequence]
) -> None:
    """A slot that idles writes what it reads behind everything else."""
    kept, ruined = sequence(30, 0), sequence(30, 2)
    step(engine, [(kept, 20), (ruined, 6)])
    for cache in caches():
        cache[2, :, :6] = np.nan
    step(engine, [(sequence(20, 3), 1)])
    copied = sequence(30, 2, kept.tokens[:12])
    copied.num_computed = 12
    step(engine, [(copied, 4)], copies=[(0, 2, 12)])


def test_host_a_step_without_wanted_rows_only_writes_the_cache(
    engine: Engine, sequence: Callable[..., Sequence]
) -> None:
    one, other = sequence(30, 3), sequence(30, 5)
    assert step(engine, [(one, 10), (other, 1)], wanted=[]).shape == (0, engine.spec.vocab_size)
    step(engine, [(one, 1), (other, 9)])


def test_host_the_longest_slot_is_used_to_its_end(engine: Engine, sequence: Callable[..., Sequence]) -> None:
    longest, other = sequence(engine.spec.block_size, 0), sequence(40, 1)
    step(engine, [(longest, engine.spec.block_size - 2), (other, 2)])
    step(engine, [(other, 1)])  # the first slot idles: its write must not reach its tokens
    step(engine, [(longest, 1), (other, 1)])
    step(engine, [(other, 30)])
    step(engine, [(longest, 1), (other, 1)])


UNCAPTURED = [
    ("is_stream_capturable", "TensorRT says that this plan cannot be captured"),
    ("a captured stream", "cudaStreamEndCapture"),
    ("cudaGraphInstantiate", "cudaGraphInstantiate"),
]


@pytest.mark.parametrize(("fault", "text"), UNCAPTURED)
def test_host_without_graphs_it_says_why_once_and_computes_the_same(
    fault: str, text: str, folder: Path, sequence: Callable[..., Sequence], caplog: pytest.LogCaptureFixture
) -> None:
    engine, _ = load_engine(folder)
    faults.order(fault)
    plain, _ = load_engine(folder)
    assert [text in record.message for record in caplog.records] == [True]
    history(plain, sequence, seed=11, num_steps=8)
    shared = sequence(20, 2), sequence(20, 2)
    shared[1].tokens, shared[1].logits = shared[0].tokens, shared[0].logits
    for one, host in zip(shared, (engine, plain), strict=True):
        step(host, [(one, 7)])
    assert np.array_equal(step(engine, [(shared[0], 1)]), step(plain, [(shared[1], 1)]))
    engine.close()
    plain.close()


STEP_CALLS = [
    ("cudaMemcpy2DAsync", "cudaMemcpy2DAsync"),
    ("cudaMemset2DAsync", "cudaMemset2DAsync"),
    ("cudaMemcpyAsync", "cudaMemcpyAsync"),
    ("cudaGraphLaunch", "cudaGraphLaunch"),
    ("set_input_shape", "set_input_shape(token_ids"),
    ("set_tensor_address", "set_tensor_address("),
    ("execute_async_v3", "execute_async_v3 failed: told to fail"),
    ("cudaStreamSynchronize", "cudaStreamSynchronize"),
]


@pytest.mark.parametrize(("call", "text"), STEP_CALLS)
def test_host_a_call_that_fails_in_a_step_is_named_and_the_next_step_works(
    call: str, text: str, engine: Engine, sequence: Callable[..., Sequence]
) -> None:
    first, second = sequence(40, 1), sequence(40, 2)
    step(engine, [(first, 20), (second, 10)])
    faults.order(call)
    with pytest.raises(EngineError, match="a step of 2 sequences failed") as failure:
        execute(engine, pack([(first, 1), (second, 5)], copies=[(1, 3, 4), (1, 3, 2)]))
    assert text in str(failure.value)
    step(engine, [(first, 1), (second, 5)])


@pytest.mark.parametrize("call", ["cudaStreamSynchronize", "cudaGraphLaunch"])
def test_host_a_lost_gpu_fails_every_step_after_it_and_closing_still_ends(
    call: str, folder: Path, sequence: Callable[..., Sequence]
) -> None:
    engine, _ = load_engine(folder)
    one = sequence(40, 1)
    step(engine, [(one, 20)])
    faults.order(call, code=faults.LOST)
    for _ in range(3):
        with pytest.raises(EngineLostError, match=r"IllegalAddress.*the GPU is lost"):
            execute(engine, pack([(one, 1)]))
    engine.close()
    GPUS.reset()  # what was on it died with it


LOAD_CALLS = [
    *("cudaSetDevice", "cudaSetDeviceFlags", "cudaStreamCreateWithFlags", "cudaDeviceGetAttribute", "cudaMemGetInfo"),
    *("cudaMalloc", "cudaHostAlloc", "cudaMemsetAsync", "cudaMemcpyAsync", "cudaStreamSynchronize"),
    *("deserialize_cuda_engine", "create_execution_context", "set_optimization_profile_async", "set_input_shape"),
    *("set_tensor_address", "execute_async_v3"),
]


def load_with_fault(folder: Path, call: str, nth: int) -> TridentError | None:
    """The error with which loading fails if the n-th such call does; None if it is not called so often."""
    faults.order(call, nth)
    try:
        engine, _ = load_engine(folder)
    except TridentError as error:
        return error.with_traceback(None)  # whose frames hold on to what they had
    finally:
        faults.clear()
    engine.close()
    return None


@pytest.mark.parametrize("call", LOAD_CALLS)
def test_host_whatever_fails_while_loading_is_named_and_everything_is_freed(call: str, folder: Path) -> None:
    num_failures = 0
    for nth in range(1, 40):
        error = load_with_fault(folder, call, nth)
        assert GPUS.leaks() == []
        if error is None:
            break
        num_failures += 1
        assert call in str(error) or "told to fail" in str(error)
    assert num_failures >= 1


def test_host_too_little_memory_is_refused_with_the_numbers(folder: Path) -> None:
    load_engine(folder)[0].close()
    whole = GPUS.total_bytes
    GPUS.total_bytes = 2**20
    with pytest.raises(PlanError, match=r"0\.00 GiB of free memory.*KV slots.*--max-num-seqs"):
        load_engine(folder)
    GPUS.total_bytes = whole


def test_host_another_gpu_than_the_first_serves_from_any_thread(
    folder: Path, sequence: Callable[..., Sequence]
) -> None:
    GPUS.num_devices = 2
    engine, _ = load_engine(folder, [1])
    assert {block.device for block in GPUS.blocks} == {1}
    failures: list[BaseException] = []

    def work() -> None:
        try:
            step(engine, [(sequence(20, 0), 10)])
            engine.close()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []


def test_host_more_gpus_than_parts_are_refused(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="tensor_parallel: the engine is for 1 GPUs, not 2"):
        load_engine(folder, [0, 1])


def test_host_a_gpu_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(ArtifactError, match=r"GPU 3 cannot be used: .*cudaSetDevice"):
        load_engine(folder, [3])


#: What the refusal says; which part of the manifest is another, and its fields.
BENT: list[tuple[str, str, dict[str, Any]]] = [
    ("compiler.version: the plan was built by tensorrt 9.9, 11.0.0.0", "compiler", {"version": "9.9"}),
    ("compiler.target: the plan was built for sm_90, GPU 0 is sm_89", "compiler", {"target": "sm_90"}),
    ("architecture.vocab_size: the manifest says 401", "architecture", {"vocab_size": 401}),
    ("architecture.num_layers: 2 layers .*key_cache.2", "architecture", {"num_layers": 2}),
    ("kv_cache.block_size: the manifest says 65, the plan has 64", "kv_cache", {"block_size": 65}),
    ("kv_cache.kind: the manifest says blocks, the plan has slots", "kv_cache", {"kind": "blocks"}),
    ("kv_cache.block_bytes: the manifest says 1,", "kv_cache", {"block_bytes": 1}),
    ("kv_cache.num_blocks: calls of token_ids", "kv_cache", {"num_blocks": 7}),
    ("precision.kv_cache: the manifest says f16, key_cache.0 is float", "precision", {"kv_cache": "f16"}),
]


@pytest.mark.parametrize(("text", "part", "fields"), BENT)
def test_host_a_manifest_that_does_not_fit_the_plan_is_refused_by_field(
    text: str, part: str, fields: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(folder)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    write_manifest(tmp_path, replace(manifest, **{part: replace(getattr(manifest, part), **fields)}))
    with pytest.raises(ArtifactError, match=text):
        load_engine(tmp_path)


def test_host_a_damaged_plan_is_refused_with_what_tensorrt_says(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "network.plan").write_bytes(b"no plan at all")
    write_manifest(tmp_path, replace(read_manifest(folder), digests={}))
    with pytest.raises(ArtifactError, match=r"network\.plan: .*cannot read it: Serialization assertion failed"):
        load_engine(tmp_path)


def test_host_a_slot_that_is_not_aligned_is_refused(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "llama", head_dim=16)
    build(checkpoint, tmp_path / "1", LIMIT)
    with pytest.raises(ArtifactError, match=r"kv_cache\.block_size: a slot of key_cache\.0 has 8320 bytes"):
        load_engine(tmp_path / "1")


def test_host_a_compiler_that_is_not_installed_is_named_with_its_remedy(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ArtifactError, match="needs tensorrt, which is not installed: pip install tensorrt"):
        load_engine(folder)


def test_host_memory_that_runs_out_while_loading_says_what_to_change(folder: Path) -> None:
    faults.order("cudaMalloc", 3, code=OUT_OF_MEMORY)
    with pytest.raises(PlanError, match=r"cudaMalloc failed.*--max-num-seqs"):
        load_engine(folder)
