"""Habits of config.json: what is understood in every spelling, and what is refused whatever the model type is."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

from tests.checkpoints import tiny_config, tiny_tokenizer
from trident_compiler.checkpoint.foreign_configs import check_config
from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.families.registry import read_decoder
from trident_ensemble.contract.errors import CheckpointError

TYPES = ("llama", "gemma3_text")


@pytest.fixture(scope="module")
def llama() -> dict[str, Any]:
    """A configuration as a hub file has it: transformers 4's keys, written out."""
    values: dict[str, Any] = tiny_config("llama", 400).to_dict()
    values.pop("rope_parameters")
    values.pop("dtype")
    return {**values, "architectures": ["LlamaForCausalLM"], "torch_dtype": "float16", "rope_theta": 10000.0}


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": None},
        {"head_dim": None},
        {"head_dim": 16.0, "hidden_size": 64.0, "num_hidden_layers": 3.0, "vocab_size": 400.0},
        {"rope_theta": 10000},
        {"torch_dtype": None, "dtype": "bfloat16"},
        {"dtype": {"a": 1}},
        {"architectures": None},
        {"architectures": "LlamaForCausalLM"},
        {"architectures": ["LlamaModel"]},
        {"architectures": ["LlamaForSequenceClassification", "LlamaForCausalLM"]},
        {"auto_map": {"AutoModelForCausalLM": "modeling_llama.Mine"}},
        {"quantization_config": None},
        {"tie_word_embeddings": 0},
    ],
)
def test_foreign_configs_other_spellings_are_the_same_model(llama: dict[str, Any], changes: dict[str, Any]) -> None:
    expected = read_decoder(JsonConfig(llama, "config.json"))
    values = json.loads(json.dumps({**llama, **changes}))
    found = read_decoder(JsonConfig(values, "config.json"))
    assert found.config == expected.config
    assert found.outline == expected.outline


def test_foreign_configs_without_key_heads_has_one_for_each_query_head(llama: dict[str, Any]) -> None:
    for absent in ({}, {"num_key_value_heads": None}):
        values = {key: value for key, value in llama.items() if key != "num_key_value_heads"}
        outline = read_decoder(JsonConfig({**values, **absent}, "config.json")).outline
        assert {layer.num_kv_heads for layer in outline.layers} == {4}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": None}, ["model_type = None", "llama, gemma3_text are"]),
        ({"model_type": ["llama"]}, ["model_type = ['llama']"]),
        ({"model_type": "own", "auto_map": {"AutoConfig": "x.Own"}}, ["model_type = 'own'", "auto_map", "never run"]),
        ({"model_type": "a", "text_config": {"model_type": "b"}}, ["model_type = 'a'", "text_config", "'b'", "llama"]),
        ({"model_type": "a", "text_config": {}}, ["model_type = 'a'", "text_config"]),
        ({"model_type": "a", "text_config": 7}, ["text_config = 7", "object"]),
        ({"model_type": "a", "text_config": {"model_type": "llama"}}, ["text_config", "'llama'", "python -c"]),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            ["architectures", "SequenceClass", "no language-model"],
        ),
        ({"architectures": ["LlamaForTokenClassification"]}, ["architectures", "LlamaForTokenClassification"]),
        ({"architectures": ["Qwen2ForRewardModel"]}, ["architectures", "Qwen2ForRewardModel"]),
        ({"architectures": ["LlamaForCausalLMEagle3"]}, ["architectures", "Eagle3"]),
        ({"architectures": [7]}, ["architectures = [7]", "names"]),
        ({"architectures": {"a": 1}}, ["architectures", "names"]),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ["quantized by gptq", "--weights int8"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config", "quantized weights", "'bits': 4"]),
        ({"quantization_config": "int8"}, ["quantization_config = 'int8'", "object"]),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, ["compression_config", "compressed-tensors"]),
    ],
)
def test_foreign_configs_what_no_family_serves_is_named(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(CheckpointError) as refusal:
        check_config(JsonConfig({"model_type": "llama", **changes}, "config.json"), TYPES)
    assert all(word in str(refusal.value) for word in ["config.json: ", *words])


def test_foreign_configs_a_language_model_inside_another_is_saved_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    text = {**sizes, "num_hidden_layers": 2, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 404}
    vision = {**sizes, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    tokens = {"image_token_index": 401, "boi_token_index": 402, "eoi_token_index": 403}
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, **tokens)).eval()
    model.save_pretrained(whole)
    tiny_tokenizer().save_pretrained(whole)
    with pytest.raises(CheckpointError) as refusal:
        check_config(JsonConfig.read(whole / "config.json"), TYPES)
    command = shlex.split(str(refusal.value).partition("build that: ")[2])
    assert (command[:2], command[3:]) == (["python", "-c"], ["FOLDER", "NEW_FOLDER"])

    monkeypatch.setattr(sys, "argv", ["-c", str(whole), str(part)])
    exec(command[2], {})  # noqa: S102  # in a process of its own it would take seconds
    assert check_config(JsonConfig.read(part / "config.json"), TYPES) == "gemma3_text"
    assert (part / "tokenizer.json").is_file()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(part, dtype=torch.float32)(ids).logits
        torch.testing.assert_close(found, model(input_ids=ids).logits)
