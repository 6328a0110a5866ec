"""The features of networks that not every engine can compute, and the refusal of a model that needs one of those.

Owns the list, and the key of config.json that asks for each. Never knows an engine: each brings a table of what it
cannot do and why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum

from trident_ensemble.contract.errors import CheckpointError


class Feature(Enum):
    """Something that a network may need; the value is the key of config.json that asks for it."""

    #: A bias on scores by the distance of key and query.
    ALIBI = "alibi"
    #: The same in a layer with a sliding window.
    ALIBI_WITH_WINDOW = "alibi with sliding_window"
    #: A score in the softmax that has no value.
    SINKS = "sinks"
    #: A bound on scores inside attention.
    SOFT_CAP = "attn_logit_softcapping"
    #: Heads of values that have another size than those of keys.
    VALUE_HEAD_DIM = "v_head_dim"
    #: A mixture of experts.
    EXPERTS = "num_experts"
    #: A matrix for each head, as latent attention has it.
    HEAD_MATRICES = "kv_lora_rank"


def check_features(model_type: str, features: Iterable[Feature], engine: str, refusals: Mapping[Feature, str]) -> None:
    """Refuse a network that an engine cannot compute.

    Args:
        model_type: of config.json; some types need a feature whatever the rest of it says.
        features: what the network needs.
        engine: its name.
        refusals: what it cannot do, and why.

    Raises:
        CheckpointError: names the key of config.json, the engine and the reason.
    """
    for feature in features:
        if feature in refusals:
            raise CheckpointError(
                f"config.json: {feature.value} of model_type = {model_type!r}: the {engine} engine cannot serve it: "
                f"{refusals[feature]}"
            )
