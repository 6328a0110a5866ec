"""The precision of an engine on CPUs: measured where there is a choice, told, and remembered."""

from __future__ import annotations

import argparse
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoints import make_checkpoint
from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.families.family import Decoder
from trident_compiler.families.registry import read_decoder
from trident_compiler.model_folder import open_checkpoint
from trident_compiler.openvino import compiler as openvino_compiler
from trident_compiler.openvino.compiler import OpenVINOCompiler, measure_precisions
from trident_compiler.openvino.precision_trials import Sample, Trials, choose, run_trials
from trident_compiler.openvino.probe import probe_model
from trident_compiler.planning.machine import Machine, this_machine
from trident_compiler.weights.roles import Role
from trident_ensemble.contract.manifest import Precision, PrecisionChoice, read_manifest
from trident_tools import build

CPU = "A CPU"
MACHINE = Machine(free_bytes=2**30, cpu=CPU)
EXACT = Sample(8.0, 2.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "llama", "llama", num_hidden_layers=1)


def trials(*factors: float) -> Trials:
    """Rounds in which the other format is so many times as fast."""
    others = tuple(Sample(EXACT.prompt_ms / factor, EXACT.decode_ms / factor) for factor in factors)
    return Trials((EXACT,) * len(factors), others)


@pytest.mark.parametrize(
    ("factors", "compute", "words"),
    [
        ((2.0, 1.9, 2.1, 2.0, 2.0), "bf16", "2.00 times as fast as fp32"),
        ((2.0, 1.9, 2.1, 0.3, 2.0), "bf16", "2.00 times as fast as fp32"),
        ((0.7, 0.7, 0.7, 0.8, 0.7), "fp32", "1.43 times as fast as bf16, and more exact"),
        ((1.02, 1.02, 1.02, 1.02, 1.02), "fp32", "more exact, and as fast as bf16 but for noise"),
        ((1.0, 0.98, 1.4, 1.5, 0.9), "fp32", "more exact, and as fast as bf16 but for noise"),
    ],
)
def test_precision_trials_the_faster_by_more_than_noise_or_the_more_exact(
    factors: tuple[float, ...], compute: str, words: str
) -> None:
    chosen, choice = choose("fp32", "bf16", trials(*factors), CPU)
    assert (chosen, choice.reason, choice.cpu) == (compute, words, CPU)
    assert [trial.compute for trial in choice.trials] == ["fp32", "bf16"]
    assert (choice.trials[0].prompt_ms, choice.trials[0].decode_ms) == (8.0, 2.0)


@given(st.lists(st.floats(0.01, 100), min_size=5, max_size=15))
def test_precision_trials_what_is_not_always_faster_never_wins_by_its_luck(factors: list[float]) -> None:
    measured = trials(*factors)
    slower = sum(factor < 1.04 for factor in factors)
    assert not (measured.other_wins() and slower > len(factors) / 2)
    assert not (measured.other_wins() and measured.exact_wins())


def test_precision_trials_a_busy_machine_does_not_decide() -> None:
    """Rounds in which one format met a neighbour more often, and both are as fast at their best."""
    slowed = tuple(Sample(EXACT.prompt_ms * factor, EXACT.decode_ms * factor) for factor in (1, 2, 3, 2, 2, 3, 2))
    for measured in (Trials(slowed, (EXACT,) * 7), Trials((EXACT,) * 7, slowed)):
        assert choose("fp32", "bf16", measured, CPU)[0] == "fp32"


@pytest.mark.parametrize(("round_seconds", "rounds"), [(1.0, 7), (0.04, 11), (0.001, 15)])
def test_precision_trials_the_formats_take_turns_for_a_bounded_time(round_seconds: float, rounds: int) -> None:
    order: list[str] = []
    ticks = count()

    def exact() -> Sample:
        order.append("fp32")
        return EXACT

    def other() -> Sample:
        order.append("bf16")
        return EXACT

    measured = run_trials(exact, other, lambda: next(ticks) * round_seconds)
    assert len(measured.exact) == len(measured.other) == rounds
    assert order == ["fp32", "bf16"] * (rounds + 1)


def compiler(measure: Any, monkeypatch: pytest.MonkeyPatch, *, bf16: bool = True) -> OpenVINOCompiler:
    monkeypatch.setattr(openvino_compiler, "computes_bf16", lambda: bf16)
    return OpenVINOCompiler(MACHINE, measure)


@pytest.mark.parametrize(
    ("factor", "weights", "expected"),
    [
        (2.0, None, Precision("bf16", "bf16", "bf16")),
        (2.0, "int8", Precision("bf16", "int8", "bf16")),
        (0.7, None, Precision("fp32", "bf16", "f32")),
    ],
)
def test_precision_trials_the_default_is_what_was_measured(
    factor: float, weights: str | None, expected: Precision, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def measure(model: Decoder, exact: Precision, other: Precision, dtype: str) -> Trials:
        asked.append((model.num_layers, exact.compute, exact.weights, other.compute, other.weights, dtype))
        return trials(*[factor] * 5)

    found = compiler(measure, monkeypatch).precision(open_checkpoint(checkpoint), None, weights)
    assert (found.compute, found.weights, found.kv_cache) == (expected.compute, expected.weights, expected.kv_cache)
    assert found.choice.cpu == CPU
    assert asked == [(1, "fp32", weights or "bf16", "bf16", weights or "bf16", "BF16")]


def test_precision_trials_nothing_is_measured_where_there_is_no_choice(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*_: Any) -> Trials:
        raise AssertionError

    opened = open_checkpoint(checkpoint)
    for asked in ("fp32", "bf16"):
        found = compiler(measure, monkeypatch).precision(opened, asked, None)
        assert (found.compute, found.choice) == (asked, PrecisionChoice("as asked"))
    found = compiler(measure, monkeypatch, bf16=False).precision(opened, None, None)
    assert (found.compute, found.choice) == ("fp32", PrecisionChoice("this CPU cannot compute in bfloat16"))


def test_precision_trials_the_numbers_are_shown_and_kept_in_the_manifest(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(openvino_compiler, "computes_bf16", lambda: True)
    monkeypatch.setattr(openvino_compiler, "measure_precisions", lambda *_: trials(*[0.8] * 5))
    parser = argparse.ArgumentParser()
    build.add_arguments(parser)
    repository = tmp_path / "repository"
    build.run(parser.parse_args([str(checkpoint), "--repository", str(repository), "--engine", "openvino"]))
    printed = capsys.readouterr().out
    cpu = this_machine().cpu
    assert "precision fp32, bf16 weights, f32 KV cache: 1.25 times as fast as bf16, and more exact" in printed
    assert "measured  fp32 8.0 + 2.0 ms, bf16 10.0 + 2.5 ms" in printed
    assert f"on {cpu}" in printed
    kept = read_manifest(repository / "core" / "1").precision.choice
    assert (kept.cpu, [trial.prompt_ms for trial in kept.trials]) == (cpu, [8.0, 10.0])


def shape(**sizes: int) -> Decoder:
    return read_decoder(JsonConfig({"model_type": "llama", "vocab_size": 128256, **sizes}, "config.json"))


LARGE = shape(
    hidden_size=8192, intermediate_size=28672, num_attention_heads=64, num_key_value_heads=8, num_hidden_layers=80
)


def parameters(model: Decoder) -> int:
    return model.outline.size(Role.COLUMN, Role.ROW)


def test_precision_trials_a_large_layer_is_cut_and_keeps_its_proportions() -> None:
    cut = probe_model(LARGE)
    assert 2**21 < parameters(cut) <= 2**24
    layer = cut.outline.layers[0]
    assert (layer.head_dim, layer.num_heads // layer.num_kv_heads) == (8192 // 64, 8)
    (gate,) = (use.shape for use in cut.outline.weights if use.name == "model.layers.0.mlp.gate_proj.weight")
    assert gate[0] / gate[1] == pytest.approx(3.5)


@given(st.integers(1, 96), st.integers(1, 8), st.integers(1, 16384), st.integers(1, 65536), st.integers(1, 100))
def test_precision_trials_any_shape_has_a_probe(
    kv_heads: int, group: int, hidden: int, intermediate: int, layers: int
) -> None:
    config = shape(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=kv_heads * group,
        num_key_value_heads=kv_heads,
        num_hidden_layers=layers,
        head_dim=64,
    )
    cut = probe_model(config)
    assert all(layer.num_heads % layer.num_kv_heads == 0 for layer in cut.outline.layers)
    assert cut.num_layers <= min(4, layers)


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_precision_trials_probes_of_every_family_run(family: str, weights: str, tmp_path: Path) -> None:
    model = open_checkpoint(make_checkpoint(tmp_path / family, family)).model
    fp32 = Precision("fp32", weights, "f32")
    start = time.process_time()
    measured = measure_precisions(model, fp32, fp32, "BF16")
    assert time.process_time() - start < 30
    assert all(sample.prompt_ms > 0 and sample.decode_ms > 0 for sample in (*measured.exact, *measured.other))
    assert 0.2 < measured.gain() < 5, "both are the same"
