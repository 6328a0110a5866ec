"""What not every engine can compute: how it is found in a network, and how a model that needs it is refused."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from trident_compiler.families.features import Feature, check_features
from trident_compiler.families.ops import Ops, Value, Weights
from trident_compiler.families.outline import outline
from trident_compiler.families.words import Attention
from trident_compiler.openvino.refusals import REFUSALS as OPENVINO_REFUSALS
from trident_compiler.tensorrt.refusals import REFUSALS as TENSORRT_REFUSALS
from trident_ensemble.contract.errors import CheckpointError

SLOPES, SINKS = ((name, np.ones(2, np.float32)) for name in ("slopes", "sinks"))


@pytest.mark.parametrize(
    ("given", "value_size", "features"),
    [
        ({}, 8, ()),
        ({"sliding_window": 4}, 8, ()),
        ({"alibi_slopes": SLOPES}, 8, (Feature.ALIBI,)),
        ({"alibi_slopes": SLOPES, "sliding_window": 4}, 8, (Feature.ALIBI, Feature.ALIBI_WITH_WINDOW)),
        ({"sinks": SINKS}, 8, (Feature.SINKS,)),
        ({"soft_cap": 50.0}, 8, (Feature.SOFT_CAP,)),
        ({}, 4, (Feature.VALUE_HEAD_DIM,)),
    ],
)
def test_features_are_found_in_the_network(
    given: dict[str, Any], value_size: int, features: tuple[Feature, ...]
) -> None:
    def write(net: Ops[Value], weights: Weights) -> Value:
        known: dict[str, Any] = {
            name: weights.constant(*value) if isinstance(value, tuple) else value for name, value in given.items()
        }
        wide = net.embedding(weights.embedding("table", 10, 16))
        query = key = net.split_heads(wide, 2)
        value = net.split_heads(net.slice(wide, 0, 2 * value_size), 2)
        return net.select_rows(net.attention(0, query, key, value, Attention(1.0, **known)))

    assert outline(write).features == features


def test_features_a_model_is_refused_by_key_engine_and_reason() -> None:
    refusals = MappingProxyType({Feature.SOFT_CAP: "it has no such thing"})
    check_features("some", [Feature.ALIBI], "openvino", refusals)
    said = r"config\.json: attn_logit_softcapping of model_type = 'some': the openvino engine cannot .* it has no such"
    with pytest.raises(CheckpointError, match=said):
        check_features("some", [Feature.ALIBI, Feature.SOFT_CAP], "openvino", refusals)


@pytest.mark.parametrize("refusals", [OPENVINO_REFUSALS, TENSORRT_REFUSALS])
def test_features_reasons_complete_the_sentence(refusals: dict[Feature, str]) -> None:
    for reason in refusals.values():
        assert reason[0].islower()
        assert not reason.endswith(".")
