"""What a checkpoint may be: refusals by key and value, damaged files, generation defaults."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from transformers import AutoTokenizer

from tests.checkpoints import edit_json, make_checkpoint
from trident_compiler.checkpoint.tensor_files import INDEX_FILE, SINGLE_FILE, TensorFiles
from trident_compiler.model_folder import open_checkpoint
from trident_compiler.weights.formats import FP32
from trident_compiler.weights.roles import Role
from trident_compiler.weights.weights import WeightSource
from trident_ensemble.contract.errors import CheckpointError
from trident_ensemble.contract.manifest import Generation


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "llama", "llama", num_hidden_layers=1)


@pytest.fixture
def checkpoint(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "llama"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "bert"}, ["model_type", "bert", "llama"]),
        ({"model_type": ["llama"]}, ["model_type"]),
        ({"num_local_experts": 8}, ["num_local_experts", "8"]),
        ({"hidden_act": "xielu"}, ["hidden_act", "xielu"]),
        ({"rope_parameters": None, "rope_scaling": {"type": "mrope", "factor": 2.0}}, ["type", "mrope"]),
        ({"rope_parameters": {"rope_type": "linear"}}, ["factor", "None"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
        ({"hidden_size": None}, ["hidden_size", "None"]),
        ({"hidden_size": "64"}, ["hidden_size", "'64'"]),
        ({"num_hidden_layers": True}, ["num_hidden_layers", "True"]),
        ({"num_hidden_layers": 10**9}, ["num_hidden_layers"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads", "3"]),
        ({"head_dim": 15}, ["head_dim", "15"]),
        ({"rms_norm_eps": -1}, ["rms_norm_eps", "-1"]),
    ],
)
def test_checkpoint_unsupported_configurations_are_refused(
    checkpoint: Path, changes: dict[str, Any], words: list[str]
) -> None:
    edit_json(checkpoint / "config.json", **changes)
    with pytest.raises(CheckpointError) as refusal:
        open_checkpoint(checkpoint)
    assert all(word in str(refusal.value) for word in ["config.json", *words])


@pytest.mark.parametrize("name", ["config.json", SINGLE_FILE, "tokenizer.json"])
def test_checkpoint_a_missing_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "config.json"])
def test_checkpoint_an_index_cannot_lead_out_of_the_folder(checkpoint: Path, name: str) -> None:
    (checkpoint / SINGLE_FILE).unlink()
    (checkpoint / INDEX_FILE).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(CheckpointError, match="weight_map"):
        open_checkpoint(checkpoint)


def test_checkpoint_shards_must_hold_what_the_index_says(tmp_path: Path) -> None:
    save_file({"a": np.zeros(4, np.float32)}, tmp_path / "one.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}
    (tmp_path / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="'b'"):
        TensorFiles(tmp_path)
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {"b": "one.safetensors"}}))
    with pytest.raises(CheckpointError, match="'a'"):
        TensorFiles(tmp_path)


def write_raw(path: Path, header: bytes, body: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + body)


def entry(dtype: str, shape: Any, begin: int, end: int) -> bytes:
    return json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}}).encode()


@pytest.mark.parametrize(
    ("header", "body"),
    [
        (entry("F32", [4], 0, 16), bytes(12)),  # beyond the end
        (entry("F32", [4], 4, 20), bytes(20)),  # a gap
        (entry("F32", [4], 0, 12), bytes(16)),  # the shape does not fit
        (entry("F32", [-4], 0, 16), bytes(16)),
        (entry("F32", ["4"], 0, 16), bytes(16)),
        (entry("F32", [2**40, 2**40], 0, 16), bytes(16)),
        (entry("I64", [3], 0, 16), bytes(16)),
        (entry("F4", [32], 4, 20), bytes(20)),
        (entry("NEW", [32], 0, -1), bytes(16)),
        (b'{"a": {"dtype": 7, "shape": [2], "data_offsets": [0, 16]}}', bytes(16)),
        (b'{"a": 1}', b""),
        (b"[]", b""),
        (b"\xff\xfe", b""),
        (b"[" * 100_000, b""),
    ],
)
def test_checkpoint_dishonest_headers_are_refused(tmp_path: Path, header: bytes, body: bytes) -> None:
    write_raw(tmp_path / SINGLE_FILE, header, body)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        TensorFiles(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x01\x02", struct.pack("<Q", 2**60) + b"{}"])
def test_checkpoint_truncated_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SINGLE_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        TensorFiles(tmp_path)


def test_checkpoint_wrong_shapes_missing_and_unknown_tensors_are_named(tmp_path: Path) -> None:
    save_file({"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float32)}, tmp_path / SINGLE_FILE)
    source = WeightSource(TensorFiles(tmp_path), FP32, FP32, tied=False)
    with pytest.raises(CheckpointError, match=r"a: .*shape is \[2, 3\].*\[3, 2\]"):
        source.matrix("a", 3, 2, Role.WHOLE)
    with pytest.raises(CheckpointError, match="c: the checkpoint has no such tensor"):
        source.vector("c", 4)
    source.matrix("a", 2, 3, Role.WHOLE)
    with pytest.raises(CheckpointError, match="b: this tensor"):
        source.require_all_used()


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({"eos_token_id": 3}, Generation((0, 3), 0.0, 0, 1.0)),
        ({"eos_token_id": [9, 3, 9], "temperature": 0.7, "min_p": 0.2}, Generation((0, 3, 9), 0.0, 0, 1.0)),
        ({"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.9}, Generation((0,), 0.6, 20, 0.9)),
        ({"do_sample": True, "min_p": 0.05}, Generation((0,), 1.0, 50, 1.0, min_p=0.05)),
        ({"do_sample": True, "min_p": 0}, Generation((0,), 1.0, 50, 1.0)),
        (
            {
                "repetition_penalty": 1.1,
                "min_new_tokens": 4,
                "bad_words_ids": [[7], [8, 9], [0]],
                "suppress_tokens": [1, 7],
            },
            Generation((0,), 0.0, 0, 1.0, 0.0, 1.1, 4, ((7,), (8, 9), (1,))),
        ),
        ({"stop_strings": "User:"}, Generation((0,), 0.0, 0, 1.0, stop_strings=("User:",))),
        ({"stop_strings": ["User:", "\n\n"]}, Generation((0,), 0.0, 0, 1.0, stop_strings=("User:", "\n\n"))),
    ],
)
def test_checkpoint_generation_defaults(checkpoint: Path, generation: dict[str, Any], expected: Generation) -> None:
    (checkpoint / "generation_config.json").write_text(json.dumps(generation))
    assert open_checkpoint(checkpoint).generation == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bad_words_ids", [[1], []]),
        ("bad_words_ids", [1]),
        ("suppress_tokens", [1000]),
        ("stop_strings", [""]),
        ("stop_strings", 7),
        ("min_p", 1.5),
        ("min_new_tokens", -1),
        ("repetition_penalty", 0),
    ],
)
def test_checkpoint_a_bad_generation_setting_is_named(checkpoint: Path, key: str, value: Any) -> None:
    (checkpoint / "generation_config.json").write_text(json.dumps({"do_sample": True, key: value}))
    with pytest.raises(CheckpointError, match=rf"generation_config.json: {key}"):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize("ends", [-1, 400, "2", [1, None]])
def test_checkpoint_end_ids_must_be_token_ids(checkpoint: Path, ends: Any) -> None:
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(CheckpointError, match=r"generation_config.json: eos_token_id"):
        open_checkpoint(checkpoint)


def test_checkpoint_generation_settings_that_are_not_served_are_named(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint")
    assert open_checkpoint(folder).not_served == ()
    edit_json(folder / "generation_config.json", typical_p=0.9, no_repeat_ngram_size=0, num_beams=4)
    assert open_checkpoint(folder).not_served == ("typical_p = 0.9", "num_beams = 4")


def test_checkpoint_named_chat_templates_come_with_the_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.chat_template = {"default": "plain", "tool_use": "with {{ tools }}"}
    tokenizer.save_pretrained(checkpoint)
    open_checkpoint(checkpoint).tokenizer_files.write(tmp_path / "copy")
    assert AutoTokenizer.from_pretrained(tmp_path / "copy").chat_template == tokenizer.chat_template
