"""Models exported to OpenVINO, built and run: against transformers, and refused where they would compute otherwise."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
import pytest
import torch
from openvino import opset15 as ops

from tests.backend.engine.driver import DrivenSequence, Driver
from tests.checkpoints import edit_json, make_checkpoint, reference_model
from tests.fakes.progress import SilentProgress
from tests.openvino_exports import NETWORK, compress, edited, export, restored
from trident_backend.engine.factory import load_engine
from trident_backend.engine.protocol import Engine
from trident_compiler.compiler_choice import choose_exported_compiler
from trident_compiler.engine_builder import build_engine
from trident_compiler.gpu_choice import BuildRequest
from trident_compiler.model_folder import ExportedModel, open_model
from trident_compiler.openvino.exported import compiler as exported_compiler
from trident_compiler.openvino.exported.agreement import check_agreement
from trident_compiler.openvino.exported.compiler import ExportedCompiler
from trident_compiler.openvino.exported.network import convert_exported
from trident_compiler.openvino.precision_trials import Sample, Trials
from trident_compiler.planning.machine import Machine
from trident_compiler.planning.memory_plan import LimitsRequest, parse_cache_size
from trident_ensemble.contract.errors import BuildError, CheckpointError, PlanError
from trident_ensemble.contract.manifest import Precision
from trident_preprocessing.chat.template_probe import write_template_profiles

Floats = npt.NDArray[np.float32]

MACHINE = Machine(free_bytes=2**30, cpu="test")
WANTED = LimitsRequest(max_num_seqs=8, max_num_tokens=256, cache=parse_cache_size("2048t"))
WINDOW, SWITCH = 24, 64
#: Of a checkpoint: its family, and how it differs from the usual sizes of the tests.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_hidden_layers": 2}),
    "qwen2": ("qwen2", {"num_hidden_layers": 2}),
    "qwen3": ("qwen3", {"num_hidden_layers": 2}),
    "mistral": ("mistral", {"num_hidden_layers": 2, "sliding_window": WINDOW}),
    "gemma3": (
        "gemma3_text",
        {
            "sizes": {
                "hidden_size": 64,
                "intermediate_size": 160,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 32,
                "max_position_embeddings": 2048,
                "sliding_window": WINDOW,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                "query_pre_attn_scalar": 24,
                "final_logit_softcapping": 3.0,
            }
        },
    ),
}


class Exports:
    """Checkpoints and what is exported of them, each made once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def checkpoint(self, case: str) -> Path:
        folder = self._folder / "checkpoints" / case
        if not folder.exists():
            family, changes = CASES[case]
            make_checkpoint(folder, family, **changes)
        return folder

    def exported(self, case: str) -> Path:
        folder = self._folder / "exports" / case
        return folder if folder.exists() else export(self.checkpoint(case), folder)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(tmp_path_factory.mktemp("exports"))


def opened(folder: Path) -> ExportedModel:
    model = open_model(folder)
    assert isinstance(model, ExportedModel)
    return model


def built(folder: Path, engine: Path, wanted: LimitsRequest = WANTED) -> Engine:
    """The engine of an exported model, in fp32."""
    model, compiler = opened(folder), ExportedCompiler(MACHINE)
    precision = compiler.precision(model, "fp32", None)
    plan = compiler.plan(model, precision, wanted)
    engine.mkdir()
    build_engine(
        model, engine, precision, plan,
        compiler=compiler, describe_text=write_template_profiles, progress=SilentProgress(),
    )  # fmt: skip
    return load_engine(engine)[0]


def prompt(length: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(length).integers(4, 400, length)]


def two_in_chunks(engine: Engine) -> list[tuple[list[int], Floats]]:
    """Tokens and logits of two sequences: in chunks beside each other, then token by token."""
    driver, sequences = Driver(engine), [DrivenSequence(prompt(75)), DrivenSequence(prompt(50))]
    long, short = sequences
    steps = [[(long, 40), (short, 3)], [(short, 40), (long, 30)], *[[(long, 1), (short, 1)]] * 5, [(short, 2)]]
    logits: dict[int, list[Floats]] = {id(long): [], id(short): []}
    for step in steps:
        for (sequence, _), rows in zip(step, driver.step(step), strict=True):
            logits[id(sequence)].append(rows)
    return [(each.tokens, np.concatenate(logits[id(each)])) for each in sequences]


def expected(model: Any, tokens: list[int], positions_times: int = 1) -> Floats:
    with torch.no_grad():
        positions = positions_times * torch.arange(len(tokens))[None]
        logits: Floats = model(torch.tensor([tokens]), position_ids=positions).logits[0].numpy()
    return logits


def assert_equal(found: Floats, wanted: Floats) -> None:
    np.testing.assert_allclose(found, wanted, atol=1e-5 * float(np.abs(wanted).max()), rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_exported_logits_equal_transformers(case: str, exports: Exports, tmp_path: Path) -> None:
    engine = built(exports.exported(case), tmp_path / "engine")
    reference = reference_model(exports.checkpoint(case))
    for tokens, logits in two_in_chunks(engine):
        assert_equal(logits, expected(reference, tokens))
    engine.close()


@pytest.mark.parametrize("case", ["llama", "gemma3"])
def test_exported_only_the_asked_rows_have_logits(case: str, exports: Exports, tmp_path: Path) -> None:
    engine = built(exports.exported(case), tmp_path / "engine")
    driver = Driver(engine)
    whole = driver.whole(prompt(20))
    batch = driver.batch([(DrivenSequence(prompt(20)), 20)])
    for rows in ([], [19], [4, 11]):
        some = np.array(rows, np.int32)
        engine.submit(batch.__class__(**{**vars(batch), "logit_rows": some}))
        logits = engine.collect()
        assert logits.shape == (len(rows), engine.spec.vocab_size)
        found = logits.read(np.arange(len(rows))[:, None], np.arange(engine.spec.vocab_size))
        np.testing.assert_allclose(found, whole[some], atol=1e-5)
    engine.close()


@pytest.mark.parametrize(("stored", "group"), [("int8", None), ("int4", 32)])
def test_exported_compressed_weights_are_those_numbers(
    stored: str, group: int | None, exports: Exports, tmp_path: Path
) -> None:
    """Against transformers with each matrix rounded apart. Where the CPU has VNNI, activations are rounded too."""
    folder = edited(exports.exported("llama"), tmp_path / stored, partial(compress, group=group))
    assert (folder / "openvino_model.bin").stat().st_size < 0.5 * (
        exports.exported("llama") / "openvino_model.bin"
    ).stat().st_size
    compiler = ExportedCompiler(MACHINE)
    precision = compiler.precision(opened(folder), "fp32", None)
    assert (precision.weights, precision.activation_group) == (stored, group or 32)
    engine = built(folder, tmp_path / "engine")
    reference = reference_model(exports.checkpoint("llama"))
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if parameter.ndim == 2:
                inner = None if name == "model.embed_tokens.weight" else group
                parameter.copy_(torch.from_numpy(restored(parameter.numpy(), inner)))
    for tokens, logits in two_in_chunks(engine):
        wanted = expected(reference, tokens)
        assert (np.abs(logits - wanted) / wanted.std()).mean() < 0.05
    engine.close()


def _attentions(network: Any) -> list[Any]:
    return [each for each in network.get_ops() if each.get_type_name() == "ScaledDotProductAttention"]


def _keys(mask: Any) -> Any:
    """The number of each key that a mask has, float32 `[1, 1, 1, keys]`."""
    count = ops.gather(ops.shape_of(mask, "i32"), ops.constant(3), ops.constant(0))
    keys = ops.range(ops.constant(0), count, ops.constant(1), "f32")
    return ops.reshape(keys, ops.constant([1, 1, 1, -1]), special_zero=False)


SLOPES, SINKS = (0.5, 0.25, 0.125, 0.0625), (1.5, -0.5, 0.25, 3.0)


def with_alibi(network: Any) -> None:
    """The bias by distance as exporters write it, which is recognised."""
    for attention in _attentions(network):
        mask = attention.input_value(3)
        assert mask.get_element_type() == ov.Type.boolean
        bias = ops.multiply(ops.constant(np.array(SLOPES, np.float32).reshape(1, 4, 1, 1)), _keys(mask))
        for _ in range(2):
            bias = ops.reshape(bias, ops.constant([1, 4, 1, -1]), special_zero=False)
        masked = ops.select(ops.logical_not(mask), ops.constant(-1e30, ov.Type.f32), bias)
        attention.input(3).replace_source_output(masked.output(0))


def with_sinks(network: Any) -> None:
    for attention in _attentions(network):
        given = [attention.input_value(index) for index in range(5)]
        sinks = ops.constant(np.array(SINKS, np.float32).reshape(1, 4, 1, 1))
        attention.set_arguments([*given, sinks.output(0)])


def with_another_bias(network: Any) -> None:
    """A bias that nothing recognises: the later a key is, the more it counts."""
    for attention in _attentions(network):
        mask = attention.input_value(3)
        late = ops.multiply(_keys(mask), ops.constant(0.3, ov.Type.f32))
        masked = ops.select(mask, late, ops.constant(-1e30, ov.Type.f32))
        attention.input(3).replace_source_output(masked.output(0))


def with_a_switch(network: Any) -> None:
    """Positions that count double where a step has one beyond a bound, as rotary factors of long sequences do."""
    positions = next(port for port in network.inputs if "position_ids" in port.get_names())
    users = positions.get_target_inputs()
    largest = ops.reduce_max(positions, ops.constant([0, 1]), keep_dims=False)
    is_long = ops.greater(ops.add(largest, ops.constant(1, ov.Type.i64)), ops.constant(SWITCH, ov.Type.i64))
    times = ops.select(is_long, ops.constant(2, ov.Type.i64), ops.constant(1, ov.Type.i64))
    scaled = ops.multiply(positions, times)
    for user in users:
        user.replace_source_output(scaled.output(0))


def with_a_mean_of_positions(network: Any) -> None:
    positions = next(port for port in network.inputs if "position_ids" in port.get_names())
    users = positions.get_target_inputs()
    scaled = ops.add(positions, ops.reduce_min(positions, ops.constant([0, 1]), keep_dims=True))
    for user in users:
        user.replace_source_output(scaled.output(0))


def test_exported_biases_and_sinks_are_kept(exports: Exports, tmp_path: Path) -> None:
    """Against the network as it was exported, which has them; and not against it without them."""
    biased = edited(exports.exported("llama"), tmp_path / "alibi", with_alibi)
    assert [layer.alibi_slopes for layer in convert_exported(biased, 512).layers] == [SLOPES] * 2
    check_agreement(biased, 400)
    sinking = edited(exports.exported("llama"), tmp_path / "sinks", with_sinks)
    assert [layer.sinks for layer in convert_exported(sinking, 512).layers] == [SINKS] * 2
    check_agreement(sinking, 400)


def test_exported_what_the_conversion_would_leave_out_is_refused(exports: Exports, tmp_path: Path) -> None:
    biased = edited(exports.exported("llama"), tmp_path / "biased", with_another_bias)
    with pytest.raises(CheckpointError, match=rf"{NETWORK}: with paged attention.*does not recognise.*masks"):
        built(biased, tmp_path / "engine")
    averaged = edited(exports.exported("llama"), tmp_path / "averaged", with_a_mean_of_positions)
    with pytest.raises(CheckpointError, match=r"reduces the positions of a step"):
        built(averaged, tmp_path / "another")


@pytest.mark.parametrize(("max_seq_len", "times"), [(128, 2), (SWITCH, 1)])
def test_exported_the_longest_sequence_decides_how_all_are_rotated(
    max_seq_len: int, times: int, exports: Exports, tmp_path: Path
) -> None:
    switched = edited(exports.exported("llama"), tmp_path / "switched", with_a_switch)
    wanted = LimitsRequest(8, 256, max_seq_len, parse_cache_size("2048t"))
    engine = built(switched, tmp_path / "engine", wanted)
    reference = reference_model(exports.checkpoint("llama"))
    # Beside a sequence whose positions are beyond the bound, if only one may be.
    for tokens, logits in two_in_chunks(engine):
        assert_equal(logits, expected(reference, tokens, times))
    engine.close()


def test_exported_a_window_that_the_network_lacks_is_refused_beyond_it(exports: Exports, tmp_path: Path) -> None:
    folder = shutil.copytree(exports.exported("llama"), tmp_path / "windowed")
    edit_json(folder / "config.json", sliding_window=WINDOW)
    model, compiler = opened(folder), ExportedCompiler(MACHINE)
    precision = compiler.precision(model, "fp32", None)
    with pytest.raises(CheckpointError, match=r"config\.json: sliding_window = 24: .*--max-seq-len 24"):
        compiler.plan(model, precision, WANTED)
    assert compiler.plan(model, precision, LimitsRequest(max_seq_len=WINDOW)).max_seq_len == WINDOW
    edit_json(folder / "config.json", use_sliding_window=False)
    assert compiler.plan(opened(folder), precision, WANTED).max_seq_len == 2048


def test_exported_limits_and_memory_are_planned_as_for_families(exports: Exports) -> None:
    model, compiler = opened(exports.exported("gemma3")), ExportedCompiler(MACHINE)
    assert (model.model.model_type, model.model.num_layers, model.model.vocab_size) == ("gemma3_text", 3, 400)
    precision = compiler.precision(model, "fp32", None)
    plan = compiler.plan(model, precision, WANTED)
    # Keys and values of 2 heads of 32 through 3 layers, in float32.
    assert plan.block_bytes == plan.block_size * 3 * 2 * 2 * 32 * 4
    num_bytes = (exports.exported("gemma3") / "openvino_model.bin").stat().st_size
    assert abs(plan.weights_bytes - num_bytes) < 1000
    assert plan.resident_bytes == int(1.5 * plan.weights_bytes)
    assert compiler.describe_weights(model, precision) == "fp32 weights as they were exported"
    with pytest.raises(PlanError, match=r"--max-seq-len: 4096 is more than the checkpoint's 2048 positions"):
        compiler.plan(model, precision, LimitsRequest(max_seq_len=4096))
    with pytest.raises(PlanError, match="weights: they take"):
        ExportedCompiler(Machine(2**20, "test")).plan(model, precision, WANTED)


def test_exported_weights_stay_as_they_are_and_gpus_are_refused(exports: Exports) -> None:
    model, compiler = opened(exports.exported("llama")), ExportedCompiler(MACHINE)
    assert compiler.precision(model, "fp32", "fp32").weights == "fp32"
    with pytest.raises(BuildError, match=r"--weights int8: .*stay as they are, which is fp32; export it again"):
        compiler.precision(model, "fp32", "int8")
    with pytest.raises(BuildError, match="--precision fp16: OpenVINO computes in"):
        compiler.precision(model, "fp16", None)
    with pytest.raises(BuildError, match="--engine tensorrt: the model was exported to OpenVINO"):
        choose_exported_compiler(BuildRequest(engine="tensorrt"))
    with pytest.raises(BuildError, match=r"--compute-capability: .*the model was exported to OpenVINO"):
        choose_exported_compiler(BuildRequest(capability="8.9"))
    with pytest.raises(BuildError, match=r"--kv-cache-precision fp8: .*exported to OpenVINO.*follows the computation"):
        choose_exported_compiler(BuildRequest(fp8_cache=True))
    assert isinstance(choose_exported_compiler(BuildRequest()).compiler, ExportedCompiler)


def test_exported_the_computation_is_measured_where_there_is_a_choice(
    exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exported_compiler, "computes_bf16", lambda: True)
    asked: list[tuple[str, str]] = []

    def measure(_: ExportedModel, exact: Precision, other: Precision) -> Trials:
        asked.append((exact.compute, other.compute))
        return Trials((Sample(2.0, 2.0),) * 8, (Sample(1.0, 1.0),) * 8)

    model = opened(exports.exported("llama"))
    found = ExportedCompiler(MACHINE, measure).precision(model, None, None)
    assert (found.compute, found.kv_cache, found.choice.cpu) == ("bf16", "bf16", "test")
    found = ExportedCompiler(Machine(2**20, "test"), measure).precision(model, None, None)
    assert found.compute == "fp32"
    assert "to try bf16 beside it takes" in found.choice.reason
    assert asked == [("fp32", "bf16")]


def test_exported_a_measurement_takes_all_of_the_network(exports: Exports) -> None:
    fp32 = ExportedCompiler(MACHINE).precision(opened(exports.exported("llama")), "fp32", None)
    trials = exported_compiler.measure_exported(opened(exports.exported("llama")), fp32, fp32)
    assert 0.2 < trials.gain() < 5


@pytest.mark.parametrize("content", ["<net/>", None])
def test_exported_what_openvino_cannot_read_is_refused(content: str | None, exports: Exports, tmp_path: Path) -> None:
    """A description that passes the checks of its constants and is none all the same."""
    folder = shutil.copytree(exports.exported("llama"), tmp_path / "damaged")
    text = (folder / NETWORK).read_text()
    damaged = text.replace('type="MatMul"', 'type="NoSuchOperation"') if content is None else content
    (folder / NETWORK).write_text(damaged)
    with pytest.raises(CheckpointError, match=rf"{NETWORK}: (describes no network|OpenVINO .* cannot read it)"):
        built(folder, tmp_path / "engine")


def test_exported_a_config_that_says_no_longest_context_is_refused(exports: Exports, tmp_path: Path) -> None:
    folder = shutil.copytree(exports.exported("llama"), tmp_path / "nowhere")
    edit_json(folder / "config.json", max_position_embeddings=None)
    with pytest.raises(CheckpointError, match=r"config\.json: none of max_position_embeddings, n_positions.*; add"):
        open_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: missing"):
        open_model(folder)


def test_exported_a_rotary_switch_is_told(exports: Exports, tmp_path: Path) -> None:
    folder = shutil.copytree(exports.exported("llama"), tmp_path / "switching")
    assert opened(folder).model.rotary_switch is None
    edit_json(folder / "config.json", rope_scaling={"type": "longrope", "original_max_position_embeddings": 512})
    assert opened(folder).model.rotary_switch == 512
