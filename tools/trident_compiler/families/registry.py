"""The model families that Trident builds.

Owns the list of families, and the choice by config.json's `model_type`. Never describes a family: each is one module,
which reads its configuration, names its tensors and their roles, and writes its network in the operations of `ops`;
nothing about a family stands anywhere else. A new one is such a module and a line in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trident_compiler.checkpoint.foreign_configs import check_config
from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.families.bloom import BLOOM
from trident_compiler.families.cohere import COHERE
from trident_compiler.families.deepseek import DEEPSEEK
from trident_compiler.families.exaone4 import EXAONE4
from trident_compiler.families.falcon import FALCON
from trident_compiler.families.family import Decoder, Family
from trident_compiler.families.gemma import GEMMA, GEMMA2
from trident_compiler.families.glm import GLM
from trident_compiler.families.glm_moe import DOTS1, GLM4_MOE
from trident_compiler.families.gpt2 import GPT2
from trident_compiler.families.gpt_neo import GPT_NEO
from trident_compiler.families.gpt_neox import GPT_NEOX
from trident_compiler.families.gpt_oss import GPT_OSS
from trident_compiler.families.gptj import GPTJ
from trident_compiler.families.granite import GRANITE, GRANITE_SWA
from trident_compiler.families.granite_moe import GRANITE_MOE
from trident_compiler.families.hunyuan import HUNYUAN
from trident_compiler.families.jais2 import JAIS2
from trident_compiler.families.llama import LLAMA
from trident_compiler.families.mixtral import MIXTRAL
from trident_compiler.families.mpt import MPT
from trident_compiler.families.nanochat import NANOCHAT
from trident_compiler.families.nemotron import NEMOTRON
from trident_compiler.families.olmo import OLMO
from trident_compiler.families.opt import OPT
from trident_compiler.families.persimmon import PERSIMMON
from trident_compiler.families.phi import PHI
from trident_compiler.families.phi3 import PHI3
from trident_compiler.families.qwen_moe import OLMOE, QWEN2_MOE, QWEN3_MOE
from trident_compiler.families.smollm3 import SMOLLM3
from trident_compiler.families.stablelm import STABLELM
from trident_compiler.families.starcoder2 import STARCODER2

#: Every family; the first that has a model type wins.
FAMILIES: tuple[Family[Any], ...] = (
    BLOOM,
    COHERE,
    DEEPSEEK,
    DOTS1,
    EXAONE4,
    FALCON,
    GEMMA,
    GEMMA2,
    GLM,
    GLM4_MOE,
    GPT2,
    GPTJ,
    GPT_NEO,
    GPT_NEOX,
    GPT_OSS,
    GRANITE,
    GRANITE_MOE,
    GRANITE_SWA,
    HUNYUAN,
    JAIS2,
    LLAMA,
    MIXTRAL,
    MPT,
    NANOCHAT,
    NEMOTRON,
    OLMO,
    OLMOE,
    OPT,
    PERSIMMON,
    PHI,
    PHI3,
    QWEN2_MOE,
    QWEN3_MOE,
    SMOLLM3,
    STABLELM,
    STARCODER2,
)


def read_decoder(config: JsonConfig, families: Sequence[Family[Any]] = FAMILIES) -> Decoder:
    """Return the family that `config.json` names, with the configuration read from it.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    model_type = check_config(config, [name for family in families for name in family.model_types])
    family = next(family for family in families if model_type in family.model_types)
    return Decoder(model_type, family, family.read_config(config))
