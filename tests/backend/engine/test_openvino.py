"""The OpenVINO engine against transformers in fp32: every family, packed, chunked, windowed, quantized."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.backend.engine.conftest import BuildAndLoad, reference_logits
from tests.backend.engine.driver import DrivenSequence, Driver
from tests.bfloat16 import needs_bf16
from tests.checkpoints import FAMILIES, make_checkpoint, reference_model
from trident_backend.engine.protocol import execute

#: The logits of these checkpoints have a standard deviation of about 1.6; fp32 arithmetic in another order moves them
#: by 2e-5 at most.
FP32_TOLERANCE = 2e-4
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biased": ("llama", {"attention_bias": True}),
    "llama-sharded": ("llama", {"max_shard_size": "100KB"}),
    "llama-fp32": ("llama", {"dtype": torch.float32}),
    "llama-fp16": ("llama", {"dtype": torch.float16}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "llama-31": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    "mistral-whole": ("mistral", {"sliding_window": None}),
}


def prompt(length: int, seed: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(4, 400, length)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_openvino_packed_steps_equal_transformers(variant: str, tmp_path: Path, engine_of: BuildAndLoad) -> None:
    family, changes = VARIANTS[variant]
    checkpoint = make_checkpoint(tmp_path / variant, family, **changes)
    engine = engine_of(checkpoint)
    reference = reference_model(checkpoint)
    driver = Driver(engine)
    sequences = [DrivenSequence(prompt(length, length)) for length in (101, 7, 64, 33)]
    expected = [reference_logits(reference, sequence.tokens) for sequence in sequences]
    long, short, middle, late = sequences
    steps = [
        [(long, 40), (short, 3)],
        [(short, 1), (long, 1), (middle, 50)],
        [(long, 25), (short, 1), (middle, 14), (late, 32)],
        [(late, 1), (long, 35), (short, 2)],
    ]
    for step in steps:
        begins = [sequence.num_computed for sequence, _ in step]
        for (sequence, count), begin, logits in zip(step, begins, driver.step(step), strict=True):
            wanted = expected[sequences.index(sequence)][begin : begin + count]
            np.testing.assert_allclose(logits, wanted, atol=FP32_TOLERANCE, rtol=0)
            np.testing.assert_array_equal(logits.argmax(1), wanted.argmax(1))
    assert all(sequence.num_computed == len(sequence.tokens) for sequence in sequences)


@needs_bf16
def test_openvino_positions_far_out_stay_exact_in_bf16(tmp_path: Path, engine_of: BuildAndLoad) -> None:
    checkpoint = make_checkpoint(tmp_path / "llama", "llama", num_hidden_layers=1, vocab_size=400)
    tokens = prompt(1000, 1)
    expected = reference_logits(reference_model(checkpoint), tokens)
    logits = Driver(engine_of(checkpoint, "bf16")).whole(tokens)
    spread = float(expected.std())
    error_by_position = np.abs(logits - expected).mean(1) / spread
    assert error_by_position[-100:].mean() < 2 * error_by_position[:100].mean() + 0.01


@needs_bf16
@pytest.mark.parametrize("family", FAMILIES)
def test_openvino_bf16_differs_by_what_bf16_allows(family: str, tmp_path: Path, engine_of: BuildAndLoad) -> None:
    checkpoint = make_checkpoint(tmp_path / family, family)
    tokens = prompt(90, 3)
    expected = reference_logits(reference_model(checkpoint), tokens)
    logits = Driver(engine_of(checkpoint, "bf16")).whole(tokens)
    relative = np.abs(logits - expected) / expected.std()
    assert 1e-5 < relative.mean() < 0.03
    assert relative.max() < 0.4


@pytest.mark.parametrize(("weight_format", "mean_error"), [("int8", 0.1), ("int4", 0.6)])
def test_openvino_quantized_weights_stay_close(
    weight_format: str, mean_error: float, tmp_path: Path, engine_of: BuildAndLoad
) -> None:
    checkpoint = make_checkpoint(tmp_path / "llama", "llama")
    tokens = prompt(90, 4)
    expected = reference_logits(reference_model(checkpoint), tokens)
    logits = Driver(engine_of(checkpoint, "fp32", weight_format)).whole(tokens)
    assert (np.abs(logits - expected) / expected.std()).mean() < mean_error


def restore_int8(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    step = np.abs(values).max(1, keepdims=True) / 127
    return np.asarray(np.rint(values / step) * step, np.float32)


def restore_int4(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    size = next(size for size in (128, 64, 32) if values.shape[1] % size == 0)
    groups = values.reshape(len(values), -1, size)
    low, high = np.minimum(groups.min(2, keepdims=True), 0), np.maximum(groups.max(2, keepdims=True), 0)
    step = ((high - low) / 15).astype(np.float16).astype(np.float32)
    zero = np.rint(-low / step)
    return np.asarray((np.clip(np.rint(groups / step) + zero, 0, 15) - zero) * step).reshape(values.shape)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("weight_format", ["int8", "int4"])
def test_openvino_quantized_weights_are_those_numbers(
    weight_format: str, tied: bool, tmp_path: Path, engine_of: BuildAndLoad
) -> None:
    """Against transformers with each matrix rounded by this test's own arithmetic; what is left is that the plugin
    rounds activations to 8 bits too."""
    checkpoint = make_checkpoint(tmp_path / "llama", "llama", tie_word_embeddings=tied)
    reference = reference_model(checkpoint)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            head = name == "lm_head.weight" or (tied and name == "model.embed_tokens.weight")
            if name.endswith("proj.weight") or head:
                restore = restore_int4 if weight_format == "int4" and not head else restore_int8
                parameter.copy_(torch.from_numpy(restore(parameter.numpy())))
    tokens = prompt(90, 4)
    expected = reference_logits(reference, tokens)
    logits = Driver(engine_of(checkpoint, "fp32", weight_format)).whole(tokens)
    assert (np.abs(logits - expected) / expected.std()).mean() < 0.05


def test_openvino_chunks_equal_the_whole(tmp_path: Path, engine_of: BuildAndLoad) -> None:
    engine = engine_of(make_checkpoint(tmp_path / "llama", "llama"))
    driver = Driver(engine)
    tokens = prompt(300, 5)
    whole = driver.whole(tokens)
    sequence = DrivenSequence(tokens)
    pieces = [driver.step([(sequence, count)])[0] for count in (100, 100, 1, 31, 68)]
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=FP32_TOLERANCE, rtol=0)


def test_openvino_a_step_that_wants_no_logits(tmp_path: Path, engine_of: BuildAndLoad) -> None:
    engine = engine_of(make_checkpoint(tmp_path / "llama", "llama"))
    batch = Driver(engine).batch([(DrivenSequence(prompt(10, 1)), 10)], num_logits=0)
    assert execute(engine, batch).shape == (0, engine.spec.vocab_size)


def test_openvino_a_step_is_computed_after_submit_has_returned(tmp_path: Path, engine_of: BuildAndLoad) -> None:
    engine = engine_of(make_checkpoint(tmp_path / "llama", "llama", hidden_size=512, num_hidden_layers=4))
    driver = Driver(engine)
    driver.whole(prompt(8, 0))
    batch = driver.batch([(DrivenSequence(prompt(1000, 0)), 1000)], num_logits=1)
    began = time.perf_counter()
    engine.submit(batch)
    returned = time.perf_counter()
    engine.collect()
    assert returned - began < 0.3 * (time.perf_counter() - began)
    engine.submit(batch)
    engine.close()  # waits for the step, which writes to what is freed


def test_openvino_other_threads_run_during_a_step(tmp_path: Path, engine_of: BuildAndLoad) -> None:
    checkpoint = make_checkpoint(
        tmp_path / "llama", "llama", hidden_size=512, intermediate_size=2048, num_hidden_layers=4
    )
    driver = Driver(engine_of(checkpoint))
    driver.whole(prompt(8, 0))
    ticks, done = 0, threading.Event()

    def count() -> None:
        nonlocal ticks
        while not done.wait(0.001):
            ticks += 1

    thread = threading.Thread(target=count)
    thread.start()
    driver.whole(prompt(1000, 0))
    done.set()
    thread.join()
    assert ticks >= 10
