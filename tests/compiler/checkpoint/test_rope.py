"""Inverse frequencies against transformers', in the keys of transformers 5 and of those before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope import inverse_frequencies

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"rope_theta": 500000.0},
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "rope_theta": 500000.0},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, **LLAMA3}},
    ],
)
def test_rope_frequencies_equal_transformers(keys: dict[str, Any]) -> None:
    config = LlamaConfig(hidden_size=512, num_attention_heads=4, max_position_embeddings=131072, **keys)
    expected = LlamaRotaryEmbedding(config).inv_freq.numpy()
    found = inverse_frequencies(JsonConfig(keys, "config.json"), 128, 131072)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
