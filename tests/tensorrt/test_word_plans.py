"""Real plans of what families differ by: TensorRT itself says that each word of the network language can be built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.compiler.families.case import Case
from tests.compiler.families.cases import ALL
from tests.compiler.families.openvino_model import read_model
from tests.fakes.progress import SilentProgress
from tests.tensorrt.small_networks import normal
from tests.tensorrt.test_expert_words import INNER, MIXTURES, Mixture, quantized
from tests.tensorrt.test_plans import ADA, AMPERE, BLACKWELL, MAGIC, PLAN, TURING, compiler_for
from tests.tensorrt.word_networks import weight
from trident_compiler.checkpoint.rope import Rotary
from trident_compiler.checkpoint.tensor_files import TensorFiles
from trident_compiler.families.outline import AttentionShape
from trident_compiler.families.words import Activation, Experts
from trident_compiler.planning.memory_plan import LimitsRequest
from trident_compiler.tensorrt.compiler import TensorRTCompiler
from trident_compiler.tensorrt.lowering import TensorRTLowering
from trident_compiler.tensorrt.probe import kinds_of_attention
from trident_compiler.tensorrt.profiles import Caches, profiles
from trident_compiler.weights.weights import WeightSource
from trident_ensemble.contract.errors import CheckpointError
from trident_ensemble.contract.manifest import Precision

HALF, BRAIN = Precision("fp16", "fp16", "f16"), Precision("bf16", "bf16", "bf16")
ATTENTIONS = {
    "alibi": AttentionShape(8, 8, 64, 64, None, has_alibi=True),
    "alibi and a window": AttentionShape(8, 2, 128, 128, 16, has_alibi=True),
    "sinks and a window": AttentionShape(8, 2, 64, 64, 16, has_sinks=True),
    "soft cap": AttentionShape(8, 4, 256, 256, None, soft_cap=50.0),
    "latent": AttentionShape(16, 1, 576, 512, None),
}


@pytest.mark.parametrize(("capability", "precision"), [(TURING, HALF), (ADA, BRAIN), (BLACKWELL, BRAIN)])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_word_plans_every_kind_of_attention_is_built(
    name: str, capability: tuple[int, int], precision: Precision
) -> None:
    compiler_for(capability)._probe(ATTENTIONS[name], precision)


def build(compiler: TensorRTCompiler, write: Callable[[TensorRTLowering], Any], folder: Path, compute: str) -> bytes:
    """The plan of a network without attention."""
    network = compiler._compiler.network()
    net = TensorRTLowering(compiler._trt, network, compute, 257)
    net.finish(net.select_rows(write(net)))
    compiler._compiler.compile(network, profiles(Caches((), 257), 4, 64), folder / "words.plan")
    return (folder / "words.plan").read_bytes()


def other_words(net: TensorRTLowering) -> Any:
    """Every word but attention and experts, one after another."""
    x = net.embedding(weight("embeddings", normal(50, 64)))
    x = net.add(x, net.position_embedding(weight("positions", normal(300, 64, seed=1)), 2))
    x = net.layer_norm(x, weight("scale", normal(64)), weight("bias", normal(64)), 1e-5)
    heads = net.split_heads(x, 4)
    heads = net.layer_norm(heads, weight("scales of heads", normal(4, 16)), None, 1e-5)
    frequencies = np.array([1, 0.1, 0.01, 0.001], np.float32)
    heads = net.apply_rotary(heads, Rotary(frequencies, 1.25))
    heads = net.head_linear(net.concat(net.slice(heads, 4, 16), net.slice(heads, 0, 4)), weight("m", normal(4, 16, 16)))
    x = net.add(net.merge_heads(heads), net.rms_norm(x, None, 1e-6))
    for kind in Activation:
        x = net.activation(x, kind)
    x = net.multiply(net.add_number(net.multiply_number(net.clamp(x, -1.0, None), 0.5), 1.0), net.slice(x, 0, 1))
    return net.linear(x, weight("head", normal(50, 64)))


@pytest.mark.parametrize(("capability", "compute"), [(TURING, "fp16"), (AMPERE, "bf16"), (BLACKWELL, "fp16")])
def test_word_plans_all_other_words_are_built(capability: tuple[int, int], compute: str, tmp_path: Path) -> None:
    assert build(compiler_for(capability), other_words, tmp_path, compute).startswith(MAGIC)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("mixtral", "int8"), ("mixtral", "int4"), ("mixtral", "fp8"), ("gpt_oss", "int4"), ("deepseek_v3", "bf16")],
)
def test_word_plans_experts_are_built_in_every_format(name: str, kind: str, tmp_path: Path) -> None:
    mixture = MIXTURES[name]()
    experts = mixture.experts
    if kind != "bf16":
        gate, up, down = (quantized(each, kind)[0] for each in (experts.gate, experts.up, experts.down))
        experts = Experts(gate, up, down, experts.gate_bias, experts.up_bias, experts.down_bias)
    same = Mixture(mixture.expected, mixture.router, experts, mixture.routing, mixture.gating)
    table = weight("embeddings", normal(50, experts.gate.shape[2]))
    plan = build(compiler_for(ADA), lambda net: same.write(net, net.embedding(table)), tmp_path, "bf16")
    assert plan.startswith(MAGIC)
    assert experts.gate.shape[1] == INNER


def of_each_kind() -> list[Case]:
    """The first case that needs each thing beyond the ordinary."""
    found: dict[Any, Case] = {}
    for case in ALL:
        found.setdefault(case.features, case)
    return list(found.values())


@pytest.mark.parametrize("case", of_each_kind(), ids=str)
def test_word_plans_a_family_of_each_kind_is_built(case: Case, tmp_path: Path) -> None:
    case.save(tmp_path)
    compiler, model, tensors = compiler_for(ADA), read_model(tmp_path), TensorFiles(tmp_path)
    kinds = compiler.formats(BRAIN)
    folder = tmp_path / "plans"
    folder.mkdir()
    compiler.write_network(
        folder,
        model,
        lambda share: WeightSource(
            tensors, kinds.matrix, kinds.plain, tied=model.outline.is_tied, uniform=True, share=share
        ),
        precision=BRAIN,
        plan=PLAN,
        progress=SilentProgress(),
    )
    (plan,) = folder.iterdir()
    assert plan.read_bytes().startswith(MAGIC)


def test_word_plans_each_kind_of_attention_is_asked_for_once() -> None:
    full, latent = AttentionShape(8, 2, 64, 64, None), ATTENTIONS["latent"]
    layers = [full, replace(full, sliding_window=4096), latent, full, replace(full, has_sinks=True), latent]
    assert kinds_of_attention(layers) == [replace(full, sliding_window=16), latent, replace(full, has_sinks=True)]


def test_word_plans_a_layer_that_is_unlike_the_first_is_asked_for(tmp_path: Path) -> None:
    """Of two kinds of layers the second has heads that there are no kernels for."""
    Case("llama").save(tmp_path)
    compiler, model = compiler_for(ADA), read_model(tmp_path)
    layers = (AttentionShape(8, 8, 64, 64, None), AttentionShape(8, 8, 512, 512, None))
    model.__dict__["outline"] = replace(model.outline, layers=layers)
    checkpoint: Any = SimpleNamespace(model=model)
    with pytest.raises(CheckpointError, match="head_dim = 512"):
        compiler.plan(checkpoint, BRAIN, LimitsRequest(max_num_seqs=4, max_num_tokens=64, max_seq_len=127))
