"""One tiny model of a family, and how its random checkpoint is made with transformers.

Owns what makes faults visible: matrices four times as wide as they are drawn, so that scores are not all alike, and
noise on every vector, as norms of one and biases of zero hide that they were forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from trident_compiler.families.features import Feature

#: Sizes that most families spell alike; a window, where there is one, is shorter than the prompts of the tests.
SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
ENDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WINDOW = 16


@dataclass(frozen=True)
class Case:
    """A model.

    Args:
        model_type: of config.json.
        label: what is special about it; empty for what is usual.
        config: sizes and settings as transformers takes them, beside `ENDS`.
        attention: transformers' implementation to compare with.
        mixture: it has experts, between which a router chooses.
        factor: on the matrices.
        max_seq_len: of the engine; None is the model's longest.
        features: what it must be found to need.
    """

    model_type: str
    label: str = ""
    config: Mapping[str, Any] = field(default_factory=lambda: SIZES)
    attention: str = "eager"
    mixture: bool = False
    factor: float = 4.0
    max_seq_len: int | None = None
    features: tuple[Feature, ...] = ()

    def __str__(self) -> str:
        return f"{self.model_type}-{self.label.replace(' ', '-')}" if self.label else self.model_type

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
        """Save a random checkpoint, without a tokenizer, and return transformers' model of it in float32."""
        torch.manual_seed(0)
        config = AutoConfig.for_model(self.model_type, **{**ENDS, **self.config})
        model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=self.attention, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
                else:
                    parameter.mul_(self.factor)
        model.to(dtype).save_pretrained(folder)
        return model.to(torch.float32).eval()
