"""Which tokens end a text: what any file of a checkpoint names, in any spelling that transformers writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig

from tests.checkpoints import END, edit_json, make_checkpoint
from trident_compiler.model_folder import open_checkpoint
from trident_ensemble.contract.errors import CheckpointError

_OBJECT = {"__type": "AddedToken", "content": END, "lstrip": False, "normalized": False, "special": True}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "llama", "llama", num_hidden_layers=1)


@pytest.fixture
def checkpoint(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "llama"))


def say(folder: Path, config: Any, generation: Any, tokenizer: Any) -> None:
    edit_json(folder / "config.json", eos_token_id=config)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    edit_json(folder / "tokenizer_config.json", eos_token=tokenizer)


@pytest.mark.parametrize(
    ("config", "generation", "tokenizer", "expected"),
    [
        (None, None, END, (0,)),
        (5, 5, END, (0, 5)),
        (5, [7, 6], END, (0, 5, 6, 7)),
        (5, None, None, (5,)),
        (None, 6, None, (6,)),
        ([3, 3], 3.0, None, (3,)),
        (None, [], "", ()),
        (5, None, _OBJECT, (0, 5)),
    ],
)
def test_end_of_text_the_union_of_all_files(
    checkpoint: Path, config: Any, generation: Any, tokenizer: Any, expected: tuple[int, ...]
) -> None:
    say(checkpoint, config, generation, tokenizer)
    opened = open_checkpoint(checkpoint)
    assert opened.end_of_text.ids == opened.generation.end_ids == expected


def test_end_of_text_it_holds_whatever_transformers_takes(checkpoint: Path) -> None:
    say(checkpoint, 5, [7, 6], _OBJECT)
    ids = open_checkpoint(checkpoint).end_of_text.ids
    assert AutoTokenizer.from_pretrained(checkpoint).eos_token_id in ids
    assert set(GenerationConfig.from_pretrained(checkpoint).eos_token_id) <= set(ids)


def test_end_of_text_each_is_shown_with_its_text_and_the_files_that_name_it(checkpoint: Path) -> None:
    say(checkpoint, 0, 1, END)
    end, user = open_checkpoint(checkpoint).end_of_text.tokens
    assert (end.text, end.named_by) == (END, ("config.json", "tokenizer_config.json"))
    assert (user.text, user.named_by) == ("<|user|>", ("generation_config.json",))


def test_end_of_text_special_tokens_map_counts_where_transformers_reads_it(checkpoint: Path) -> None:
    say(checkpoint, None, None, None)
    (checkpoint / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|system|>"}}))
    taken = AutoTokenizer.from_pretrained(checkpoint).eos_token_id
    assert open_checkpoint(checkpoint).end_of_text.ids == (taken,)
    edit_json(checkpoint / "tokenizer_config.json", added_tokens_decoder={})
    assert AutoTokenizer.from_pretrained(checkpoint).eos_token_id is None
    assert open_checkpoint(checkpoint).end_of_text.ids == ()


def test_end_of_text_a_text_that_is_no_token_is_named(checkpoint: Path) -> None:
    say(checkpoint, 0, None, "</s>")
    ends = open_checkpoint(checkpoint).end_of_text
    assert (ends.ids, ends.unknown) == ((0,), ("tokenizer_config.json: eos_token = '</s>'",))


@pytest.mark.parametrize(
    ("name", "key", "value", "words"),
    [
        ("config.json", "eos_token_id", 400, "0 to 399"),
        ("config.json", "eos_token_id", -1, "or null for none"),
        ("generation_config.json", "eos_token_id", [0, 1.5], "0 to 399"),
        ("generation_config.json", "eos_token_id", True, "0 to 399"),
        ("tokenizer_config.json", "eos_token", 7, "must be a text"),
        ("tokenizer_config.json", "eos_token", {"content": 7}, "must be a text"),
        ("tokenizer_config.json", "eos_token", "<|late|>", "id 400 .* ends at 399"),
    ],
)
def test_end_of_text_what_cannot_end_a_text_is_refused_by_file_and_key(
    checkpoint: Path, name: str, key: str, value: Any, words: str
) -> None:
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    late = {**tokenizer["added_tokens"][0], "id": 400, "content": "<|late|>"}
    edit_json(checkpoint / "tokenizer.json", added_tokens=[*tokenizer["added_tokens"], late])
    edit_json(checkpoint / name, **{key: value})
    with pytest.raises(CheckpointError, match=rf"{name}: {key} = .*{words}"):
        open_checkpoint(checkpoint)
