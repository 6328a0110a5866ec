"""`make bench BENCH=experts`: decoding with experts against decoding with dense layers of the same arithmetic.

A random Mixtral of 4 layers x 512 (8 heads, 2 KV heads, 8 experts of 1024, 2 of them for each token) and a random
Mistral whose feed-forward is as large as two experts together, each sequence with 64 tokens in the cache. Steps of one
token for 1 and for 50 sequences, network by network in turn; medians, and ratios of rounds. 50 sequences choose all
experts, so that a step reads four times the weights of the dense one.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import openvino as ov
from rich.console import Console
from rich.table import Table

from tests.benchmarks.compare import machine
from trident_backend.engine.openvino.names import TOKEN_IDS
from trident_backend.engine.openvino.network import cache_geometry, compile_network
from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.families.registry import read_decoder
from trident_compiler.openvino.compiler import computes_bf16, formats_of, kv_precision
from trident_compiler.openvino.lowering import OpenVINOLowering
from trident_compiler.openvino.probe import RandomWeights, step_inputs
from trident_compiler.weights.formats import activation_group
from trident_ensemble.contract.manifest import Precision
from trident_tools.load.option_values import whole_number

_VOCABULARY, _PAST_TOKENS = 4096, 64


class DecodingNetwork:
    """A network of random weights, compiled as a build and the engine host do.

    Args:
        config: what config.json says.
        compute: precision of the computation.
        weights: format of the matrices.
    """

    def __init__(self, config: dict[str, Any], compute: str, weights: str) -> None:
        model = read_decoder(JsonConfig(config, "config.json"))
        group = activation_group(model.outline.weights, weights)
        precision = Precision(compute, weights, kv_precision(compute), activation_group=group)
        formats, net = formats_of(precision), OpenVINOLowering()
        source = RandomWeights("F32" if weights == "fp32" else "BF16", formats.matrix, formats.plain, tied=False)
        self._network = net.network(model.write(net, source), model.vocab_size)
        compiled = compile_network(self._network.model, precision)
        self._geometry = cache_geometry(compiled)
        self._request = compiled.create_infer_request()

    def seconds(self, num_sequences: int, seed: int) -> float:
        """Return how long a step of one new token for each sequence takes; the tokens follow from a seed."""
        blocks_each = -(-(_PAST_TOKENS + 1) // self._geometry.block_size)
        for tensor in self._geometry.tensors:
            cache = ov.Tensor(tensor.element_type, ov.Shape([num_sequences * blocks_each, *tensor.block_shape]))
            cache.data[:] = 0
            self._request.set_tensor(tensor.name, cache)
        inputs = step_inputs(num_sequences, 1, _PAST_TOKENS, blocks_each)
        inputs[TOKEN_IDS] = np.random.default_rng(seed).integers(0, _VOCABULARY, num_sequences).astype(np.int32)
        for name, values in inputs.items():
            self._request.set_tensor(name, ov.Tensor(values))
        self._request.infer()
        begin = time.perf_counter()
        self._request.infer()
        return time.perf_counter() - begin


def networks(compute: str, weights: str, num_layers: int) -> dict[str, DecodingNetwork]:
    """Return the mixture, and the dense network with as much arithmetic for a token."""
    sizes = {
        "vocab_size": _VOCABULARY, "hidden_size": 512, "num_hidden_layers": num_layers, "num_attention_heads": 8,
        "num_key_value_heads": 2, "max_position_embeddings": 2048, "sliding_window": None,
    }  # fmt: skip
    experts = {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 1024}
    configs: dict[str, dict[str, Any]] = {
        "mixture": {**sizes, **experts, "model_type": "mixtral"},
        "dense": {**sizes, "intermediate_size": 2048, "model_type": "mistral"},
    }
    return {name: DecodingNetwork(config, compute, weights) for name, config in configs.items()}


def main(arguments: list[str] | None = None) -> None:
    """Measure both in turn and show medians and ratios."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=experts", description=__doc__)
    parser.add_argument("--rounds", type=whole_number(1), default=41)
    parser.add_argument("--layers", type=whole_number(1), default=4)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16" if computes_bf16() else "fp32")
    parser.add_argument("--weights", choices=("fp32", "bf16", "int8", "int4"), default="bf16")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args(arguments)
    measured = networks(args.precision, args.weights, args.layers)
    table = Table(
        "sequences",
        "mixture, ms",
        "dense, ms",
        "mixture / dense",
        title=f"{args.precision}, {args.weights}, {machine()}",
    )
    figures = []
    for num_sequences in (1, 50):
        rounds = [
            {name: network.seconds(num_sequences, seed) * 1e3 for name, network in measured.items()}
            for seed in range(args.rounds)
        ]
        medians = {name: median(each[name] for each in rounds) for name in measured}
        ratio = median(each["mixture"] / each["dense"] for each in rounds)
        figures.append({"sequences": num_sequences, **medians, "ratio": ratio})
        table.add_row(str(num_sequences), *(f"{value:.2f}" for value in (*medians.values(), ratio)))
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "figures": figures}, indent=2))


if __name__ == "__main__":
    main()
