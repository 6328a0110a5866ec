"""The comparison of a converted network with the exported one, by computing both.

The conversion recognises masks, windows and biases by their patterns, and leaves out without a word what it does not
recognise. So both networks compute a few tokens, and must agree.

Owns the tokens, the steps and the bound. Never converts a network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from trident_backend.engine.openvino.names import MAX_CONTEXT_LEN, STEP_VECTORS
from trident_backend.engine.openvino.network import cache_geometry, compile_network
from trident_compiler.checkpoint.exported_files import NETWORK_FILE
from trident_compiler.openvino.exported.network import convert_exported, read_exported
from trident_ensemble.contract.errors import CheckpointError
from trident_ensemble.contract.manifest import Precision

#: The tokens that are compared, in two chunks, and those of a sequence beside the first.
_TOKENS, _FIRST, _BESIDE = 48, 20, 9
#: The bound on the difference of a token's logits, over their size. Quantized activations, where the CPU has them, move
#: logits by less than a tenth of it for each layer that they pass.
_BOUND = 0.1
_EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "PERFORMANCE_HINT": "LATENCY"}

Floats = npt.NDArray[np.float32]


def check_agreement(folder: Path, vocab_size: int) -> None:
    """Compute some tokens with the exported network and with the converted one.

    Args:
        folder: of the exported model.
        vocab_size: its tokens.

    Raises:
        CheckpointError: the networks do not agree, or OpenVINO cannot compile one.
    """
    tokens = np.random.default_rng(0).integers(0, vocab_size, _TOKENS)
    try:
        expected, found = _exported(folder, tokens), _converted(folder, tokens)
    except RuntimeError as error:
        raise CheckpointError(f"{NETWORK_FILE}: OpenVINO {ov.__version__} cannot compute it: {error}") from None
    differences = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    # A token whose experts, or whose nearly equal scores, come out otherwise is no other network.
    difference = float(np.median(differences))
    if not difference <= _BOUND:
        raise CheckpointError(
            f"{NETWORK_FILE}: with paged attention, OpenVINO {ov.__version__} computes other logits than without (they "
            f"differ by {difference:.2f} of their size), because it does not recognise the network's masks; build from "
            "the original checkpoint"
        )


def _exported(folder: Path, tokens: npt.NDArray[np.int64]) -> Floats:
    """Return the logits of all tokens by the network as it was exported."""
    compiled = ov.Core().compile_model(read_exported(folder), "CPU", _EXACT)
    given = {
        "input_ids": tokens[None],
        "attention_mask": np.ones((1, len(tokens)), np.int64),
        "position_ids": np.arange(len(tokens))[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    inputs = {port: given[name] for port in compiled.inputs for name in port.get_names() if name in given}
    logits: Floats = np.array(compiled.create_infer_request().infer(inputs)[0][0], np.float32)
    return logits


def _converted(folder: Path, tokens: npt.NDArray[np.int64]) -> Floats:
    """Return the same logits by the converted network, in two chunks, with another sequence beside the first."""
    network = convert_exported(folder, len(tokens)).network
    compiled = compile_network(network.model, Precision("fp32", "", "f32"))
    request = compiled.create_infer_request()
    geometry = cache_geometry(compiled)
    num_blocks = -(-len(tokens) // geometry.block_size)
    for tensor in geometry.tensors:
        request.set_tensor(tensor.name, ov.Tensor(tensor.element_type, ov.Shape([2 * num_blocks, *tensor.block_shape])))
    whole, beside = list(range(0, 2 * num_blocks, 2)), list(range(1, 2 * num_blocks, 2))
    begin = _step(request, [(tokens[:_FIRST], 0, whole), (tokens[:_BESIDE][::-1], 0, beside)])[:_FIRST]
    return np.concatenate([begin, _step(request, [(tokens[_FIRST:], _FIRST, whole)])])


def _step(request: Any, chunks: list[tuple[npt.NDArray[np.int64], int, list[int]]]) -> Floats:
    """Return the logits of all tokens of a step: each sequence's new tokens, its past ones' number, and its blocks."""
    counts = [len(tokens) for tokens, _, _ in chunks]
    vectors = (
        np.concatenate([tokens for tokens, _, _ in chunks]),
        np.concatenate([np.arange(past, past + len(tokens)) for tokens, past, _ in chunks]),
        [past for _, past, _ in chunks],
        np.cumsum([0, *counts]),
        [block for _, _, blocks in chunks for block in blocks],
        np.cumsum([0, *(len(blocks) for _, _, blocks in chunks)]),
        np.arange(sum(counts)),
    )
    inputs = dict(zip(STEP_VECTORS, vectors, strict=True))
    inputs[MAX_CONTEXT_LEN] = max(past + len(tokens) for tokens, past, _ in chunks)
    for name, values in inputs.items():
        request.set_tensor(name, ov.Tensor(np.array(values, np.int32)))
    request.infer()
    return np.array(request.get_output_tensor(0).data, np.float32)
