"""Every family becomes a program: all weights are used, and nothing is read before it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig

from tests.compiler.families.case import ENDS, Case
from tests.compiler.families.cases import ALL
from tests.compiler.families.openvino_model import read_model
from trident_backend.engine.cuda.program_file import read_program, write_program
from trident_backend.engine.gpu.program import (
    Argument,
    AttentionCall,
    Count,
    Kernel,
    Kind,
    Launch,
    Program,
)
from trident_compiler.checkpoint.tensor_files import TensorFiles
from trident_compiler.compiler import WeightFormats
from trident_compiler.cuda.arena import num_bytes
from trident_compiler.cuda.builder import ProgramBuilder
from trident_compiler.cuda.kernel_spec import KernelSpec
from trident_compiler.cuda.lowering import CudaLowering, NetworkSizes
from trident_compiler.cuda.network import Network, write_network
from trident_compiler.cuda.operations import Target
from trident_compiler.cuda.planned_weights import PlannedWeights
from trident_compiler.cuda.pointwise import LOGITS
from trident_compiler.cuda.refusals import REFUSALS
from trident_compiler.cuda.tensors import Tensor
from trident_compiler.cuda.weights_file import CountedWeights, WeightsFile
from trident_compiler.families.family import Decoder
from trident_compiler.weights.weights import Weight, WeightSource

SERVED = [case for case in ALL if not set(case.features) & set(REFUSALS)]
BY_NAME = {str(case): case for case in SERVED}
MAX_SEQ_LEN, BLOCK_SIZE, MAX_ROWS = 96, 32, 64
CAPABILITY = (9, 0)


def _written(launch: Launch, spec: KernelSpec) -> set[str]:
    """The parameters that a launch writes: of experts, what their own kernels make."""
    own = {"experts.route": {"chosen", "shares"}, "experts.group": {"order", "counts"}}
    return own.get(spec.function, {"out"}) & set(launch.arguments)


def lowered(folder: Path, case: Case, target: Target, formats: WeightFormats, path: Path) -> tuple[Network, Any]:
    """The program of a case's checkpoint, and the source of its weights."""
    model = read_model(folder, case.max_seq_len)
    source = WeightSource(
        TensorFiles(folder), formats.matrix, formats.plain, tied=model.outline.is_tied, uniform=formats.uniform
    )
    with WeightsFile(path) as file:
        network = write_network(
            model,
            source,
            file,
            target,
            max_seq_len=case.max_seq_len or MAX_SEQ_LEN,
            block_size=BLOCK_SIZE,
            release=source.release,
        )
    return network, source


def compiled(network: Network) -> Program:
    """The program, with kernels as if they were compiled."""
    kernels = {
        name: Kernel(f"kernels/{name}.cubin", "k", spec.function, 32, 0, spec.types, dict(spec.constants))
        for name, spec in network.specs.items()
    }
    return replace(network.program, kernels=kernels)


def arguments(step: Launch | AttentionCall) -> Iterator[tuple[str, Argument]]:
    yield from step.arguments.items()
    if isinstance(step, AttentionCall):
        for name in ("query", "key", "value"):
            yield name, Argument(Kind.VALUE, getattr(step, name))


def check_order(program: Program, specs: Mapping[str, KernelSpec], count: int) -> None:
    """A step of `count` tokens, all of which get logits, reads what it has written, and ends with the logits."""
    written: set[tuple[Kind, str]] = set()
    steps = [*program.body, *program.head]
    for step in steps:
        if isinstance(step, Launch) and not step.takes(count):
            continue
        outputs = _written(step, specs[step.kernel]) if isinstance(step, Launch) else set()
        for name, argument in arguments(step):
            if argument.kind in (Kind.VALUE, Kind.LOGITS) and name not in outputs:
                assert (argument.kind, argument.name) in written, f"{step} reads {name} too early"
        if isinstance(step, AttentionCall):
            written.add((Kind.VALUE, step.out))
            continue
        assert all(extent.of({Count.TOKENS: count, Count.ROWS: count}) > 0 for extent in step.grid)
        written |= {(step.arguments[name].kind, step.arguments[name].name) for name in outputs}
    assert (Kind.LOGITS, "") in written


def check_memory(program: Program, specs: Mapping[str, KernelSpec], count: int, max_rows: int) -> None:
    """In a step of `count` tokens, what is read has been overwritten by nothing, nor is it while it is read."""
    places = {value.name: (value.offset, value.offset + num_bytes(value, max_rows)) for value in program.values}
    assert max(end for _, end in places.values()) <= program.arena_bytes
    held: set[str] = set()
    for step in (*program.body, *program.head):
        if isinstance(step, Launch) and not step.takes(count):
            continue
        outputs = {"out"} if isinstance(step, AttentionCall) else _written(step, specs[step.kernel])
        values = [(name, argument.name) for name, argument in arguments(step) if argument.kind is Kind.VALUE]
        read = {name for parameter, name in values if parameter not in outputs}
        written = {name for parameter, name in values if parameter in outputs}
        written |= {step.out} if isinstance(step, AttentionCall) else set()
        assert read <= held, f"{step} reads what was overwritten: {read - held}"
        for name in written:
            begin, end = places[name]
            held = {each for each in held if places[each][1] <= begin or end <= places[each][0]}
        assert read - written <= held, f"{step} overwrites what it reads: {read - held}"
        held |= written


def planned(model: Decoder, target: Target, formats: WeightFormats, max_seq_len: int | None) -> Network:
    """The program of a model whose weights are not read."""
    return write_network(
        model,
        PlannedWeights(formats, tied=model.outline.is_tied),
        CountedWeights(),
        target,
        max_seq_len=max_seq_len or MAX_SEQ_LEN,
        block_size=BLOCK_SIZE,
    )


@pytest.mark.parametrize("case", SERVED, ids=str)
def test_lowering_every_family_becomes_a_program(case: Case, tmp_path: Path) -> None:
    AutoConfig.for_model(case.model_type, **{**ENDS, **case.config}).save_pretrained(tmp_path)
    model = read_model(tmp_path, case.max_seq_len)
    formats = WeightFormats("bf16", "bf16", uniform=True)
    network = planned(model, Target("bf16", CAPABILITY, MAX_ROWS), formats, case.max_seq_len)
    program = compiled(network)
    write_program(tmp_path, program)
    assert read_program(tmp_path) == program

    for count in (1, 2, 17, 63, MAX_ROWS):
        check_order(program, network.specs, count)
        check_memory(program, network.specs, count, MAX_ROWS)
    used = {argument.name for step in (*program.body, *program.head) for _, argument in arguments(step)}
    assert {weight.name for weight in program.weights} <= used
    assert [step.layer for step in program.body if isinstance(step, AttentionCall)] == list(range(model.num_layers))
    # The last half layer is of the rows that get logits.
    assert isinstance(program.body[-1], AttentionCall)
    called = {step.kernel for step in (*program.body, *program.head) if isinstance(step, Launch)}
    called |= {name for kind in program.attention_kinds for name in (kind.write, kind.few, kind.many)}
    called |= {name for kind in program.attention_kinds for name in (kind.merge_few, kind.merge_many)}
    rest = {spec.function.partition(".")[0] for name, spec in network.specs.items() if name not in called}
    assert rest == {"attention", "sampling"}, "copies of blocks, and nothing that is not launched"
    _check_arguments(program, network.specs)


def _check_arguments(program: Program, specs: Mapping[str, KernelSpec]) -> None:
    """Addresses point at what their kernel takes them for."""
    types = {(Kind.VALUE, value.name): value.dtype for value in program.values}
    types |= {(Kind.WEIGHT, weight.name): weight.dtype for weight in program.weights}
    for launch in (*program.body, *program.head):
        if not isinstance(launch, Launch):
            continue
        for name, dtype in specs[launch.kernel].types:
            argument = launch.arguments[name]
            if dtype.startswith("*") and (argument.kind, argument.name) in types:
                assert dtype == f"*{types[argument.kind, argument.name]}", f"{launch}: {name}"
            assert dtype.startswith("*") != (argument.kind in (Kind.NUMBER, Kind.COUNT)), f"{launch}: {name}"
            assert argument.kind is not Kind.LOGITS or dtype == "*fp32"


@pytest.mark.parametrize("matrix", ["bf16", "int4"])
def test_lowering_a_wide_model_keeps_what_it_reads(matrix: str, tmp_path: Path) -> None:
    """A Llama as large as those that are served, whose products are divided among programs for few rows."""
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
    AutoConfig.for_model("llama", **ENDS, **sizes, num_hidden_layers=3, vocab_size=128256).save_pretrained(tmp_path)
    formats, max_rows = WeightFormats(matrix, "bf16", uniform=True), 2048
    network = planned(read_model(tmp_path, None), Target("bf16", CAPABILITY, max_rows), formats, None)
    assert "linear.add_parts" in {spec.function for spec in network.specs.values()}
    for count in (1, 16, 17, 64, 65, 256, 300, 1024, max_rows):
        check_order(network.program, network.specs, count)
        check_memory(network.program, network.specs, count, max_rows)


def test_lowering_writes_the_weights_as_they_are_stored(tmp_path: Path) -> None:
    case = BY_NAME["llama"]
    case.save(tmp_path)
    formats = WeightFormats("fp32", "fp32", uniform=True)
    target = Target("fp32", CAPABILITY, MAX_ROWS)
    network, source = lowered(tmp_path, case, target, formats, tmp_path / "network.bin")
    source.require_all_used()
    assert source.num_bytes == 0, "weights that are written are not held"
    tensors, contents = TensorFiles(tmp_path), (tmp_path / "network.bin").read_bytes()
    stored = {weight.name: weight for weight in network.program.weights}
    for name in tensors:
        weight = stored[name]
        values = np.frombuffer(contents, np.float32, weight.num_bytes // 4, weight.offset).reshape(weight.shape)
        np.testing.assert_array_equal(values, tensors[name].values)
    rotary = stored["rotary cosines 0"]
    assert rotary.shape == (MAX_SEQ_LEN, 8)
    values = np.frombuffer(contents, np.float32, MAX_SEQ_LEN * 8, rotary.offset).reshape(rotary.shape)
    angles = np.arange(MAX_SEQ_LEN)[:, None] * 10000.0 ** (-np.arange(8) / 8)
    np.testing.assert_allclose(values, np.cos(angles), atol=2e-5)


def test_lowering_words_take_activations_and_tokens_where_they_are_meant() -> None:
    builder = ProgramBuilder(CountedWeights())
    sizes = NetworkSizes(num_layers=1, vocab_size=8, max_seq_len=16, block_size=BLOCK_SIZE, cache_dtype="bf16")
    lowering = CudaLowering(builder, Target("bf16", CAPABILITY, MAX_ROWS), sizes)
    table = Weight("table", "bf16", (8, 8), np.zeros((8, 8), np.uint16))
    logits = Tensor(LOGITS, 8, "fp32", Count.TOKENS)
    x = lowering.add(lowering.embedding(table), lowering.position_embedding(table))
    words: tuple[Callable[[], Tensor], ...] = (
        lambda: lowering.add(x, logits),
        lambda: lowering.multiply(logits, x),
        lambda: lowering.linear(logits, table),
    )
    for word in words:
        with pytest.raises(AssertionError, match="fp32"):
            word()
    builder.begin_head()
    for look_up in (lowering.embedding, lowering.position_embedding):
        with pytest.raises(AssertionError, match="of tokens"):
            look_up(table)


FORMATS = [("bf16", "bf16"), ("fp16", "int8"), ("bf16", "int4"), ("bf16", "fp8"), ("fp32", "fp32")]


@pytest.mark.parametrize(("compute", "matrix"), FORMATS)
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "mixtral", "opt"])
def test_lowering_planned_weights_are_those_that_come(name: str, compute: str, matrix: str, tmp_path: Path) -> None:
    case = BY_NAME[name]
    case.save(tmp_path)
    target, formats = Target(compute, CAPABILITY, MAX_ROWS), WeightFormats(matrix, compute, uniform=True)
    network, _ = lowered(tmp_path, case, target, formats, tmp_path / "network.bin")
    model = read_model(tmp_path, case.max_seq_len)
    assert planned(model, target, formats, case.max_seq_len) == network
    last = network.program.weights[-1]
    assert (tmp_path / "network.bin").stat().st_size == last.offset + last.num_bytes
    _check_arguments(network.program, network.specs)


@pytest.mark.parametrize(("matrix", "num_tables"), [("bf16", 1), ("fp8", 1), ("int8", 2), ("int4", 2)])
def test_lowering_a_tied_table_is_stored_once_where_one_format_serves_both(
    matrix: str, num_tables: int, tmp_path: Path
) -> None:
    case = BY_NAME["gemma3_text"]
    case.save(tmp_path)
    formats = WeightFormats(matrix, "bf16", uniform=True)
    network, _ = lowered(tmp_path, case, Target("bf16", CAPABILITY, MAX_ROWS), formats, tmp_path / "network.bin")
    model = read_model(tmp_path, case.max_seq_len)
    assert model.outline.is_tied
    named = [weight for weight in network.program.weights if "embed_tokens" in weight.name]
    tables = [weight for weight in named if not weight.name.endswith("(scales)")]
    assert len(tables) == num_tables
    plain = tables[0]
    assert (plain.dtype, plain.num_bytes) == ("bf16", 2 * plain.shape[0] * plain.shape[1])
