"""Loading an engine of our own kernels on a GPU that is a double: what does not fit is refused, and nothing leaks."""

from __future__ import annotations

import gc
import logging
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cuda.small_programs import CAPABILITY, Small, build
from tests.cuda.small_steps import history, new_sequence, pack, small_machine, step
from tests.tensorrt.double import faults
from tests.tensorrt.double.gpu import GPUS
from trident_backend.engine.cuda import weight_memory
from trident_backend.engine.cuda.program_file import PROGRAM_FILE, read_program, write_program
from trident_backend.engine.factory import load_engine
from trident_backend.engine.gpu.device import Device
from trident_backend.engine.protocol import execute
from trident_ensemble.contract import layout
from trident_ensemble.contract.digests import digest_folder
from trident_ensemble.contract.errors import ArtifactError, EngineError, EngineLostError, PlanError, TridentError
from trident_ensemble.contract.manifest import KVKind, read_manifest, write_manifest

#: CUDA's number for it.
OUT_OF_MEMORY = 2
#: Few sizes are captured of it.
TINY = Small(max_num_seqs=2, max_num_tokens=4, max_seq_len=32, num_blocks=12)


@pytest.fixture(autouse=True)
def machine() -> Iterator[None]:
    """The doubles; at the end of each test nothing may be left on the GPU."""
    with small_machine():
        yield
        faults.clear()
        gc.collect()  # an error holds on to the frames that it left
        assert GPUS.leaks() == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine") / "1"
    build(folder, TINY)
    return folder


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A folder that may be changed."""
    return Path(shutil.copytree(folder, tmp_path / "1"))


def changed_program(folder: Path, **fields: Any) -> None:
    """Change fields of a folder's program."""
    program = read_program(folder)
    write_program(folder, replace(program, **fields))
    sign(folder)


def sign(folder: Path) -> None:
    """Make the digests those of the files as they are."""
    (folder / layout.MANIFEST_FILE).rename(folder.parent / "manifest")
    digests = digest_folder(folder)
    (folder.parent / "manifest").rename(folder / layout.MANIFEST_FILE)
    write_manifest(folder, replace(read_manifest(folder), digests=digests))


@pytest.mark.parametrize("call", ["cudaStreamSynchronize", "cudaGraphLaunch", "cudaMemcpyAsync", "attention.attend"])
def test_cuda_loading_a_lost_gpu_fails_every_step_after_it_and_closing_still_ends(call: str, folder: Path) -> None:
    engine, _ = load_engine(folder)
    one = new_sequence(np.random.default_rng(1), 20)
    one.table = [0, 1, 2]
    step(engine, [(one, 4)])
    faults.order(call, code=faults.LOST)
    for _ in range(3):
        with pytest.raises(EngineLostError, match=r"(?i)illegal.?address.*the GPU is lost"):
            execute(engine, pack([(one, 1)]))
    engine.close()
    GPUS.reset()  # what was on it died with it


LOAD_CALLS = [
    *("cudaSetDevice", "cudaSetDeviceFlags", "cudaStreamCreateWithFlags", "cudaDeviceGetAttribute", "cudaMemGetInfo"),
    *("cudaMalloc", "cudaHostAlloc", "cudaFreeHost", "cudaMemsetAsync", "cudaMemcpyAsync", "cudaStreamSynchronize"),
    *("cuLibraryLoadData", "cuLibraryGetKernel", "cuKernelSetAttribute", "cuLaunchKernel", "cudaGraphLaunch"),
    *("cuKernelGetFunction", "cuFuncLoad"),
]


def load_with_fault(folder: Path, call: str, nth: int) -> TridentError | None:
    """Return the error with which loading fails if the n-th such call does; None if it is not called so often."""
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
def test_cuda_loading_whatever_fails_is_named_and_everything_is_freed(call: str, folder: Path) -> None:
    num_failures = 0
    for nth in (1, 2, 3, 5, 8, 13, 21, 50, 120):
        error = load_with_fault(folder, call, nth)
        gc.collect()
        assert GPUS.leaks() == []
        if error is None:
            break
        num_failures += 1
        assert call in str(error)
    assert num_failures >= 1


@pytest.mark.parametrize(
    "call", ["cudaMalloc", "cudaHostAlloc", "cudaMemcpyAsync", "cuFuncLoad", "cudaGraphInstantiate", "cudaGraphLaunch"]
)
@pytest.mark.parametrize("nth", [1, 3])
def test_cuda_loading_of_a_gpu_that_is_lost_the_first_error_is_said(call: str, nth: int, folder: Path) -> None:
    faults.order(call, nth, code=faults.LOST)
    with pytest.raises(EngineError) as failure:
        load_engine(folder)
    GPUS.reset()  # what was on it died with it
    assert call in str(failure.value)
    assert failure.value.__context__ is None or failure.value.__suppress_context__


def test_cuda_loading_an_interrupted_upload_frees_everything(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_memory, "_PIECE_BYTES", 512)
    num_uploads = 0
    upload = Device.upload

    def interrupted(device: Device, target: int, array: Any) -> None:
        nonlocal num_uploads
        num_uploads += array.nbytes == 512
        if num_uploads == 5:
            raise KeyboardInterrupt
        upload(device, target, array)

    monkeypatch.setattr(Device, "upload", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_engine(folder)


def test_cuda_loading_weights_are_uploaded_in_pieces_through_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(weight_memory, "_PIECE_BYTES", 512)
    monkeypatch.setattr(weight_memory, "_LOG_INTERVAL_S", 0)
    sizes: list[int] = []
    pinned = Device.pinned

    def keep(device: Device, num_bytes: int) -> Any:
        sizes.append(num_bytes)
        return pinned(device, num_bytes)

    monkeypatch.setattr(Device, "pinned", keep)
    build(tmp_path / "1")
    caplog.set_level(logging.INFO)
    engine, _ = load_engine(tmp_path / "1")
    assert 2 * 512 in sizes
    assert sum("of weights" in record.message for record in caplog.records) > 10
    # The pieces' memory is not kept.
    assert not any(block.kind == "pinned" and block.num_bytes == 2 * 512 for block in GPUS.blocks)
    history(engine, seed=5, num_steps=6)
    engine.close()


@pytest.mark.parametrize("content", [b"", b"short"])
def test_cuda_loading_weights_that_are_not_there_are_refused(content: bytes, copied: Path) -> None:
    path = copied / layout.WEIGHTS_FILE
    path.write_bytes(content)
    sign(copied)
    with pytest.raises(ArtifactError, match=r"network\.bin: the file has \d bytes"):
        load_engine(copied)


def test_cuda_loading_weights_that_shrink_meanwhile_are_refused(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_memory, "num_bytes_of", lambda path, _: path.stat().st_size + 300)
    with pytest.raises(ArtifactError, match=r"network\.bin: the file ends before its"):
        load_engine(copied)


def test_cuda_loading_too_little_memory_is_refused_with_the_numbers(folder: Path) -> None:
    load_engine(folder)[0].close()
    GPUS.total_bytes = 2**14
    with pytest.raises(
        PlanError, match=r"0\.00 GiB of free memory.*weights.*KV blocks.*activations.*logits.*--max-num-seqs"
    ):
        load_engine(folder)


@pytest.mark.parametrize("call", ["cudaMalloc", "cuLibraryLoadData", "cuFuncLoad", "cuLaunchKernel"])
def test_cuda_loading_memory_that_runs_out_says_what_to_change(call: str, folder: Path) -> None:
    faults.order(call, 3, code=OUT_OF_MEMORY)
    with pytest.raises(PlanError, match=rf"{call}.* failed.*--max-num-seqs"):
        load_engine(folder)


def test_cuda_loading_another_gpu_than_the_first_serves_from_any_thread(folder: Path) -> None:
    GPUS.num_devices = 2
    engine, _ = load_engine(folder, [1])
    assert {block.device for block in GPUS.blocks} == {1}
    failures: list[BaseException] = []
    one = new_sequence(np.random.default_rng(1), 20)
    one.table = [0, 1, 2]

    def work() -> None:
        try:
            step(engine, [(one, 4)])
            engine.close()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []


def test_cuda_loading_more_gpus_than_one_are_refused(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="tensor_parallel: the engine is for 1 GPU, not 2"):
        load_engine(folder, [0, 1])


def test_cuda_loading_a_gpu_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(ArtifactError, match=r"GPU 3 cannot be used: .*cudaSetDevice"):
        load_engine(folder, [3])


#: What the refusal says; which part of the manifest is another, and its fields.
BENT: list[tuple[str, str, dict[str, Any]]] = [
    ("compiler.target: the kernels were compiled for sm_90, GPU 0 is sm_89", "compiler", {"target": "sm_90"}),
    ("architecture.vocab_size: the manifest says 38, the program has 37", "architecture", {"vocab_size": 38}),
    ("architecture.num_layers: the manifest says 3, the program has 2", "architecture", {"num_layers": 3}),
    ("kv_cache.block_size: the manifest says 16, the program has 8", "kv_cache", {"block_size": 16}),
    ("kv_cache.kind: the manifest says slots, the program has blocks", "kv_cache", {"kind": KVKind.SLOTS}),
    ("kv_cache.block_bytes: the manifest says 1,", "kv_cache", {"block_bytes": 1}),
    ("precision.kv_cache: the manifest says bf16, the program has f32", "precision", {"kv_cache": "bf16"}),
    ("limits.max_num_tokens: a step may have 9 rows", "limits", {"max_num_tokens": 9}),
    ("limits.max_seq_len: the manifest says 33, the program has 32", "limits", {"max_seq_len": 33}),
]


@pytest.mark.parametrize(("text", "part", "fields"), BENT)
def test_cuda_loading_a_manifest_that_does_not_fit_the_program_is_refused_by_field(
    text: str, part: str, fields: dict[str, Any], copied: Path
) -> None:
    manifest = read_manifest(copied)
    write_manifest(copied, replace(manifest, **{part: replace(getattr(manifest, part), **fields)}))
    with pytest.raises(ArtifactError, match=text):
        load_engine(copied)


@pytest.mark.parametrize("name", [PROGRAM_FILE, layout.WEIGHTS_FILE, "0.cubin"])
def test_cuda_loading_a_file_without_a_digest_is_refused(name: str, copied: Path) -> None:
    manifest = read_manifest(copied)
    digests = {file: digest for file, digest in manifest.digests.items() if file != name}
    write_manifest(copied, replace(manifest, digests=digests))
    with pytest.raises(ArtifactError, match=rf"program.*: '{name}' has no digest"):
        load_engine(copied)


def test_cuda_loading_a_kernel_outside_the_folder_is_refused_by_its_field(copied: Path) -> None:
    kernels = dict(read_program(copied).kernels)
    (copied / kernels["embed"].file).rename(copied.parent / "outside.cubin")
    kernels["embed"] = replace(kernels["embed"], file="../outside.cubin")
    changed_program(copied, kernels=kernels)
    with pytest.raises(ArtifactError, match=r"program\.kernels\.embed\.file: '\.\./outside\.cubin' has no digest"):
        load_engine(copied)


def test_cuda_loading_an_engine_for_several_gpus_is_refused(copied: Path) -> None:
    write_manifest(copied, replace(read_manifest(copied), tensor_parallel=2))
    with pytest.raises(ArtifactError, match="tensor_parallel: the manifest says 2, the program has 1"):
        load_engine(copied)


def test_cuda_loading_a_launch_that_counts_what_it_cannot_know_is_refused(copied: Path) -> None:
    program = read_program(copied)
    body = list(program.body)
    product: Any = body[1]
    counted = replace(product.arguments["num_rows"], name="rows")
    body[1] = replace(product, arguments={**product.arguments, "num_rows": counted})
    changed_program(copied, body=tuple(body))
    with pytest.raises(ArtifactError, match=r"body\[1\]\.arguments\.num_rows: a number of rows, where tokens"):
        load_engine(copied)


def test_cuda_loading_a_kernel_that_is_not_there_is_refused(copied: Path) -> None:
    file = read_program(copied).kernels["embed"].file
    (copied / file).unlink()
    sign(copied)
    with pytest.raises(ArtifactError, match=rf"program\.kernels\.embed\.file: '{file}' has no digest"):
        load_engine(copied)


def test_cuda_loading_a_kernel_for_another_gpu_is_refused_with_what_the_driver_says(copied: Path) -> None:
    file = read_program(copied).kernels["embed"].file
    text = (copied / file).read_text().replace(f"[{CAPABILITY[0]}, {CAPABILITY[1]}]", "[9, 0]")
    (copied / file).write_text(text)
    sign(copied)
    with pytest.raises(EngineError, match=rf"GPU 0: cuLibraryLoadData of {file} failed: no binary for gpu"):
        load_engine(copied)


def test_cuda_loading_a_type_that_no_number_has_is_refused(copied: Path) -> None:
    kernels = dict(read_program(copied).kernels)
    parameters = tuple((name, "bf16" if name == "num_rows" else dtype) for name, dtype in kernels["keys.4"].parameters)
    kernels["keys.4"] = replace(kernels["keys.4"], parameters=parameters)
    changed_program(copied, kernels=kernels)
    with pytest.raises(
        ArtifactError, match=r"program\.kernels\.keys\.4\.parameters: num_rows is 'bf16', which no number"
    ):
        load_engine(copied)


@pytest.mark.parametrize("module", ["cuda.bindings.runtime", "cuda.bindings.driver"])
def test_cuda_loading_bindings_that_are_not_installed_are_named_with_their_remedy(
    module: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ArtifactError, match=r"needs CUDA's Python bindings .*: pip install cuda-python"):
        load_engine(folder)
