"""What a network is said to take on a GPU, against the network itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.compiler.families.case import SIZES, Case
from tests.compiler.families.cases import ALL
from tests.compiler.families.openvino_model import read_model
from tests.tensorrt.slot_networks import write_model
from trident_compiler.checkpoint.tensor_files import TensorFiles
from trident_compiler.families.features import Feature
from trident_compiler.tensorrt.memory import slot_needs

trt: Any = pytest.importorskip("tensorrt_rtx_bindings")


def case_with(*features: Feature) -> Case:
    return next(case for case in ALL if set(features) <= set(case.features))


LLAMA, LATENT = Case("llama"), case_with(Feature.VALUE_HEAD_DIM)


@pytest.mark.parametrize("case", [LLAMA, LATENT], ids=str)
def test_memory_a_position_is_what_all_caches_hold_of_it(case: Case, tmp_path: Path) -> None:
    case.save(tmp_path)
    model = read_model(tmp_path)
    program = write_model(trt, model, TensorFiles(tmp_path), 33, formats=("bf16", "bf16")).program
    shapes = [program.tensors[name].shape for name in program.inputs if "cache." in name]
    needs = slot_needs(model, "bf16", 1)
    assert needs.position_bytes == sum(2 * heads * width for _, heads, _, width in shapes)
    for _, heads, _, width in shapes:
        assert needs.multiple * heads * width * 2 % 256 == 0


@pytest.mark.parametrize(
    ("feature", "num_bytes"), [(None, 0), (Feature.ALIBI, 6), (Feature.SINKS, 8), (Feature.SOFT_CAP, 8)]
)
def test_memory_scores_are_counted_where_they_are_held(feature: Feature | None, num_bytes: int, tmp_path: Path) -> None:
    case = LLAMA if feature is None else case_with(feature)
    case.save(tmp_path)
    model = read_model(tmp_path)
    num_heads = model.outline.layers[0].num_heads
    assert slot_needs(model, "bf16", 1).score_bytes == num_bytes * num_heads
    assert slot_needs(model, "bf16", 2).score_bytes == num_bytes * num_heads // 2


def test_memory_all_experts_are_counted_for_every_token(tmp_path: Path) -> None:
    case = Case("mixtral", config={**SIZES, "num_local_experts": 8, "num_experts_per_tok": 2})
    case.save(tmp_path)
    model = read_model(tmp_path)
    beside = 6 * model.vocab_size + 2 * model.outline.layer_features
    # Two of 8 experts are chosen; gate, up, their product and the output are of all.
    assert slot_needs(model, "bf16", 1).step_token_bytes - beside == 2 * 8 * (3 * 96 + 64)
    assert slot_needs(model, "bf16", 2).step_token_bytes - beside == 2 * 8 * (3 * 48 + 64)
