"""A network divided among devices computes what the whole one does: evaluated in numpy, against transformers too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.checkpoints import make_checkpoint, reference_model
from tests.compiler.families.case import Case
from tests.compiler.families.cases import ALL
from tests.compiler.families.openvino_model import read_model
from tests.tensorrt.parallel_networks import SLOT_LEN, Ranks
from trident_compiler.model_folder import open_checkpoint
from trident_ensemble.contract.errors import PlanError

PROMPT = [5, 17, 60, 33, 200, 7, 91, 18, 44]
#: Family, changes, and what is special about it.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with biases": ("llama", {"attention_bias": True}),
    "mistral": ("mistral", {"sliding_window": 6}),
    "qwen2, tied": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        name: make_checkpoint(folder / str(number), family, num_attention_heads=8, num_key_value_heads=4, **changes)
        for number, (name, (family, changes)) in enumerate(NETWORKS.items())
    }


def serve(ranks: Ranks) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Logits of a prompt in two chunks in the second slot, then of two tokens in both slots at once."""
    parts = [ranks.run([PROMPT[:5]], 0, slice(1, 2)), ranks.run([PROMPT[5:]], 5, slice(1, 2))]
    ranks.run([PROMPT[::-1]], 0, slice(0, 1))
    parts += [ranks.run([[3], [11]], len(PROMPT), slice(0, 2)), ranks.run([[8], [2]], len(PROMPT) + 1, slice(0, 2))]
    return np.concatenate(parts)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_parallel_networks_divided_networks_compute_what_the_whole_one_does(
    name: str, num_ranks: int, checkpoints: dict[str, Path]
) -> None:
    whole = serve(Ranks(checkpoints[name], 1, "fp32", "fp32"))
    divided = serve(Ranks(checkpoints[name], num_ranks, "fp32", "fp32"))
    np.testing.assert_allclose(divided, whole, atol=2e-5 * np.abs(whole).max())
    with torch.no_grad():
        ids = torch.tensor([[*PROMPT, 11, 2]])
        expected = reference_model(checkpoints[name])(ids).logits[0].numpy()
    own = np.concatenate([divided[: len(PROMPT)], divided[[-3, -1]]])
    np.testing.assert_allclose(own, expected, atol=1e-4 * np.abs(expected).max())


def of_each_kind() -> list[Case]:
    """The first case that needs each thing beyond the ordinary, and those whose norms know several heads."""
    found: dict[Any, Case] = {}
    for case in ALL:
        found.setdefault(case.features, case)
    normed = [case for case in ALL if str(case) in {"olmo2", "cohere-norms-of-heads-biases-and-a-head-of-its-own"}]
    return [*found.values(), *normed]


@pytest.mark.parametrize("case", of_each_kind(), ids=str)
def test_parallel_networks_families_are_divided_or_refused_by_name(case: Case, tmp_path: Path) -> None:
    reference = case.save(tmp_path)
    outline = read_model(tmp_path).outline
    if any(layer.num_kv_heads == 1 for layer in outline.layers):
        with pytest.raises(PlanError, match="cannot share the checkpoint's 1 key and value heads"):
            outline.check_division(2)
        return
    outline.check_division(2)
    divided = Ranks(tmp_path, 2, "fp32", "fp32")
    tokens = [3 + token % 90 for token in PROMPT] * 3
    parts = [divided.run([part], past, slice(1, 2)) for part, past in ((tokens[:20], 0), (tokens[20:-1], 20))]
    found = np.concatenate([*parts, divided.run([tokens[-1:]], len(tokens) - 1, slice(1, 2))])
    with torch.no_grad():
        expected = reference(torch.tensor([tokens])).logits[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("weight_format", ["int8", "int4"])
def test_parallel_networks_quantized_weights_have_the_same_values_in_parts(weight_format: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(
        tmp_path / "checkpoint", hidden_size=128, head_dim=64, intermediate_size=256, num_hidden_layers=2
    )
    whole = serve(Ranks(checkpoint, 1, "fp32", weight_format))
    divided = serve(Ranks(checkpoint, 2, "fp32", weight_format))
    np.testing.assert_allclose(divided, whole, atol=2e-5 * np.abs(whole).max())


def test_parallel_networks_in_bf16_they_differ_by_the_rounding_of_the_sums(checkpoints: dict[str, Path]) -> None:
    whole = serve(Ranks(checkpoints["qwen3"], 1, "bf16", "bf16"))
    divided = serve(Ranks(checkpoints["qwen3"], 2, "bf16", "bf16"))
    exact = serve(Ranks(checkpoints["qwen3"], 1, "fp32", "bf16"))
    scale = np.abs(exact).max()
    assert np.abs(divided - whole).max() < 0.04 * scale
    # No further from the truth than the whole one is.
    assert np.abs(divided - exact).mean() < 1.5 * np.abs(whole - exact).mean()


def test_parallel_networks_each_device_holds_its_heads_and_its_part_of_the_weights(
    checkpoints: dict[str, Path],
) -> None:
    whole = Ranks(checkpoints["llama"], 1, "bf16", "bf16").programs[0]
    parts = Ranks(checkpoints["llama"], 4, "bf16", "bf16").programs
    for part in parts:
        assert part.tensors["key_cache.0"].shape == (-1, 1, SLOT_LEN, 8)
        assert part.tensors["logits"].shape == whole.tensors["logits"].shape
    embeddings = 400 * 64
    sizes = [sum(a.size for a in program.constants.values() if a.size >= 512) for program in (whole, *parts)]
    assert len(set(sizes[1:])) == 1
    assert (sizes[1] - embeddings) * 4 == sizes[0] - embeddings
    reductions = [step.attributes["operation"] for step in parts[0].steps if step.operation == "DIST_COLLECTIVE"]
    assert reductions == ["ALL_REDUCE"] * 6 + ["ALL_GATHER"]
    assert not [step for step in whole.steps if step.operation == "DIST_COLLECTIVE"]


@pytest.mark.parametrize(
    ("num_ranks", "changes", "problem"),
    [
        (3, {}, "3 devices cannot share .* 4 attention heads"),
        (4, {}, "4 devices cannot share .* 2 key and value heads"),
        (2, {"intermediate_size": 161}, "161 rows of model.layers.0.mlp.gate_proj.weight"),
        (2, {"vocab_size": 401}, "401 rows of lm_head.weight"),
    ],
)
def test_parallel_networks_what_cannot_be_divided_is_refused_by_name(
    num_ranks: int, changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    outline = open_checkpoint(make_checkpoint(tmp_path / "checkpoint", **changes)).model.outline
    outline.check_division(1)
    with pytest.raises(PlanError, match=problem):
        outline.check_division(num_ranks)
