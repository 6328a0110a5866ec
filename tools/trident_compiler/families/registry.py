"""The model families that Trident builds.

Owns the list of families, and the choice by config.json's `model_type`. Never describes a family: each is one module,
which reads its configuration, names its tensors and their roles, and writes its network in the operations of `ops`;
nothing about a family stands anywhere else. A new one is such a module and a line in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.families.family import Decoder, Family
from trident_compiler.families.llama import LLAMA
from trident_compiler.families.olmo import OLMO2

#: Every family; the first that has a model type wins.
FAMILIES: tuple[Family[Any], ...] = (LLAMA, OLMO2)


def read_decoder(config: JsonConfig, families: Sequence[Family[Any]] = FAMILIES) -> Decoder:
    """Return the family that `config.json` names, with the configuration read from it.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    model_type = config.values.get("model_type")
    for family in families:
        if isinstance(model_type, str) and model_type in family.model_types:
            return Decoder(model_type, family, family.read_config(config))
    known = ", ".join(name for family in families for name in family.model_types)
    raise config.refuse("model_type", f"not supported; {known} are")
