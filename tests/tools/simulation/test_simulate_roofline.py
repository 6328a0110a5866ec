"""Costs of steps on hardware, against the same numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trident_backend.sequences.sampling_params import SamplingParams
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.step_time import StepSize
from trident_backend.sequences.steps import ScheduledChunk, SchedulerOutput
from trident_ensemble.contract.errors import CheckpointError, PlanError
from trident_tools.simulation.deployments import Roof, read_model
from trident_tools.simulation.hardware import GPUS, Efficiency, Hardware
from trident_tools.simulation.model_shape import model_shape
from trident_tools.simulation.roofline import RooflineCost

#: Llama 3.1 8B, as its authors published it.
LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}


def write_config(folder: Path, **changes: object) -> Path:
    """A checkpoint's config.json; returns the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    return folder


def chunk(past_len: int, num_new_tokens: int, *, completes: bool) -> ScheduledChunk:
    """The next tokens of a prompt of which `past_len` are computed."""
    total = past_len + num_new_tokens + (0 if completes else 1)
    sequence = Sequence(1, [0] * total, total, 8, SamplingParams(), frozenset(), num_computed_tokens=past_len)
    return ScheduledChunk(sequence, num_new_tokens, completes)


def step(*chunks: ScheduledChunk) -> SchedulerOutput:
    """One step of these, its size as the scheduler says it."""
    size = StepSize()
    for each in chunks:
        size = size.with_chunk(each.num_new_tokens, each.sequence.num_computed_tokens, int(each.completes))
    return SchedulerOutput(chunks, size)


def test_simulate_roofline_counts_weights_as_the_published_model_has_them(tmp_path: Path) -> None:
    shape = model_shape(read_model(write_config(tmp_path)), "bf16", "bf16")
    # 8,030,261,248 parameters, of which 32 * 2 + 1 norms of 4096.
    assert shape.weight_bytes == 2 * (8_030_261_248 - 65 * 4096)
    assert shape.kv_bytes_per_token == 131_072  # 128 KiB
    tied = model_shape(read_model(write_config(tmp_path, tie_word_embeddings=True)), "bf16", "fp8")
    assert shape.weight_bytes - tied.weight_bytes == 2 * 128256 * 4096
    assert tied.kv_bytes_per_token == 65_536
    fp8 = model_shape(read_model(tmp_path), "fp8", "bf16")
    assert (fp8.head_bytes, fp8.layer_bytes) == (2 * 128256 * 4096, shape.layer_bytes / 2), "the head stays plain"


def test_simulate_roofline_reads_config_json_itself_and_refuses_what_cannot_be_built(tmp_path: Path) -> None:
    assert read_model(write_config(tmp_path) / "config.json").num_layers == 32
    with pytest.raises(CheckpointError, match="model_type"):
        read_model(write_config(tmp_path, model_type="t5"))


def test_simulate_roofline_a_small_batch_is_bound_by_memory_and_a_long_prompt_by_products(tmp_path: Path) -> None:
    shape = model_shape(read_model(write_config(tmp_path)), "bf16", "bf16")
    cost = RooflineCost(shape, bandwidth=2e12, flops=400e12, step_overhead=1e-3)
    read_once = 2 * (6_979_321_856 + 525_336_576)  # the layers' matrices and the output projection

    streams = step(*(chunk(999, 1, completes=True) for _ in range(4)))
    keys = 4 * (1000 + 1) * 131_072
    assert cost.seconds(streams) == pytest.approx(1e-3 + read_once / 2e12 + keys / 2e12, rel=1e-12)

    prompt = step(chunk(4096, 4096, completes=True))
    products = 2 * (4096 * 6_979_321_856 + 525_336_576)
    pairs = 4096 * 4096 + 4096 * 4097 // 2
    visits = 4 * 32 * 32 * 128 * pairs
    assert cost.seconds(prompt) == pytest.approx(1e-3 + products / 400e12 + visits / 400e12, rel=1e-12)


def test_simulate_roofline_logits_are_computed_for_wanted_rows_alone(tmp_path: Path) -> None:
    shape = model_shape(read_model(write_config(tmp_path)), "bf16", "bf16")
    cost = RooflineCost(shape, bandwidth=1e15, flops=400e12, step_overhead=0)
    whole, begun = (cost.seconds(step(chunk(0, 512, completes=completes))) for completes in (True, False))
    assert whole - begun == pytest.approx(2 * 525_336_576 / 400e12, rel=1e-6)


@pytest.mark.parametrize(("past", "new"), [(0, 5), (0, 40), (6, 4), (7, 9), (30, 1), (30, 20)])
def test_simulate_roofline_a_sliding_window_bounds_what_attention_sees(past: int, new: int, tmp_path: Path) -> None:
    window = 8
    config = read_model(write_config(tmp_path, model_type="mistral", sliding_window=window, num_hidden_layers=1))
    shape = model_shape(config, "bf16", "bf16")
    seen = [set(range(max(0, query - window + 1), query + 1)) for query in range(past, past + new)]

    by_products = RooflineCost(shape, bandwidth=1e30, flops=1.0, step_overhead=0)
    linear = 2 * (shape.layer_weights * new + shape.head_weights)
    visits = 4 * 4096 * sum(len(keys) for keys in seen)
    assert by_products.seconds(step(chunk(past, new, completes=True))) == linear + visits

    by_memory = RooflineCost(shape, bandwidth=1.0, flops=1e30, step_overhead=0)
    keys = len(set().union(*seen))
    expected = shape.layer_bytes + shape.head_bytes + shape.kv_bytes * (keys + new)
    assert by_memory.seconds(step(chunk(past, new, completes=True))) == expected


def test_simulate_roofline_the_cache_gets_what_weights_leave(tmp_path: Path) -> None:
    shape = model_shape(read_model(write_config(tmp_path)), "bf16", "bf16")
    gpu = GPUS["h100"]
    roof = Roof(Hardware(gpu.bandwidth, gpu.flops_bf16, gpu.memory), Efficiency(), shape, 131072, 0.0)
    assert roof.num_blocks(32) == int((0.9 * 80e9 - shape.weight_bytes) / (32 * 131_072))
    small = Roof(Hardware(1, 1, 16e9), Efficiency(), shape, 131072, 0.0)
    with pytest.raises(PlanError, match=r"--weights int8"):
        small.num_blocks(32)
