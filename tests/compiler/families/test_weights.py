"""What every family takes of its checkpoint: all tensors, on each device, and as many bytes as were planned."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import MagicMock

import pytest

from tests.compiler.families.case import Case
from tests.compiler.families.cases import ALL
from tests.compiler.families.openvino_model import read_model
from trident_compiler.checkpoint.tensor_files import TensorFiles
from trident_compiler.families.family import Decoder
from trident_compiler.weights.formats import estimated_bytes
from trident_compiler.weights.sharding import ShardSpec
from trident_compiler.weights.weights import WeightSource
from trident_ensemble.contract.errors import PlanError

pytestmark = pytest.mark.slow


def devices(model: Decoder) -> tuple[int, ...]:
    """How many devices may share the model, of one and two."""
    try:
        model.outline.check_division(2)
    except PlanError:
        return (1,)
    return (1, 2)


@pytest.mark.parametrize("case", ALL, ids=str)
def test_family_takes_every_tensor_and_as_many_bytes_as_estimated(case: Case, tmp_path: Path) -> None:
    case.save(tmp_path)
    model, tensors = read_model(tmp_path), TensorFiles(tmp_path)
    tied = model.outline.is_tied
    for num_devices in devices(model):
        for uniform in (False, True):
            estimate = estimated_bytes(model.outline.weights, "bf16", uniform=uniform, num_devices=num_devices)
            for rank in range(num_devices):
                share = ShardSpec(rank, num_devices)
                source = WeightSource(tensors, "bf16", "bf16", tied=tied, uniform=uniform, share=share)
                model.write(MagicMock(), source)
                source.require_all_used()
                assert source.num_bytes == pytest.approx(estimate, rel=0.02)


def test_family_with_one_key_head_is_not_divided(tmp_path: Path) -> None:
    refused = []
    for number, case in enumerate(ALL):
        case.save(tmp_path / str(number))
        outline = read_model(tmp_path / str(number)).outline
        if any(layer.num_kv_heads == 1 for layer in outline.layers):
            with pytest.raises(PlanError, match="2 devices cannot share the checkpoint's 1 key and value heads"):
                outline.check_division(2)
            refused.append(case.model_type)
    assert {"deepseek_v2", "falcon", "gpt_bigcode"} <= set(refused)
