"""The tokenizer's files of an engine folder: older templates, and vocabularies without a tokenizer.json."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import AutoTokenizer, Qwen2Tokenizer

from tests.checkpoints import CHAT_TEMPLATE, edit_json, tiny_tokenizer
from tests.tokenizer_zoo import TEXTS
from trident_compiler.checkpoint import tokenizer_conversion
from trident_compiler.checkpoint.tokenizer_files import read_tokenizer_files
from trident_ensemble.contract.errors import CheckpointError

END = "</s>"
OTHER = "other {{ messages }}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer without a template."""
    path = tmp_path / "checkpoint"
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(path)
    return path


def written_template(folder: Path) -> Any:
    """The templates of what an engine would hold, as serving reads them."""
    target = folder.parent / "engine"
    shutil.rmtree(target, ignore_errors=True)
    read_tokenizer_files(folder).write(target)
    return AutoTokenizer.from_pretrained(target).chat_template


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        (CHAT_TEMPLATE, CHAT_TEMPLATE),
        ({"default": CHAT_TEMPLATE}, CHAT_TEMPLATE),
        ({"default": CHAT_TEMPLATE, "tool_use": OTHER}, {"default": CHAT_TEMPLATE, "tool_use": OTHER}),
        (
            [{"name": "default", "template": CHAT_TEMPLATE}, {"name": "rag", "template": OTHER}],
            {"default": CHAT_TEMPLATE, "rag": OTHER},
        ),
        (None, None),
    ],
)
def test_tokenizer_files_the_template_of_an_older_processor_is_read(folder: Path, saved: Any, expected: Any) -> None:
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": saved}))
    assert written_template(folder) == expected


def test_tokenizer_files_the_tokenizers_own_template_comes_first(folder: Path) -> None:
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": OTHER}))
    edit_json(folder / "tokenizer_config.json", chat_template=CHAT_TEMPLATE)
    assert written_template(folder) == CHAT_TEMPLATE
    (folder / "chat_template.jinja").write_text("third")
    assert written_template(folder) == "third"


def test_tokenizer_files_several_templates_in_the_configuration_are_kept(folder: Path) -> None:
    templates = {"default": CHAT_TEMPLATE, "tool_use": OTHER}
    listed = [{"name": name, "template": template} for name, template in templates.items()]
    edit_json(folder / "tokenizer_config.json", chat_template=listed)
    assert written_template(folder) == templates


@pytest.mark.parametrize(
    "saved", [7, [CHAT_TEMPLATE], {"default": 1}, [{"template": OTHER}], {"../out": OTHER}, {"a/b": OTHER}, {"": OTHER}]
)
def test_tokenizer_files_what_is_no_template_is_refused_by_file_and_key(folder: Path, saved: Any) -> None:
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": saved}))
    with pytest.raises(CheckpointError, match=r"^chat_template.json: chat_template = "):
        read_tokenizer_files(folder)


def sentencepiece_folder(folder: Path, kind: str, tokenizer_class: str | None = "LlamaTokenizer") -> Path:
    folder.mkdir()
    SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in TEXTS for line in text.split("\n")] * 3),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=420,
        model_type=kind,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    config = {
        "tokenizer_class": tokenizer_class,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": CHAT_TEMPLATE,
    }
    if tokenizer_class is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("tokenizer_class", ["LlamaTokenizer", None])
def test_tokenizer_files_a_sentencepiece_model_is_converted(tmp_path: Path, tokenizer_class: str | None) -> None:
    source = sentencepiece_folder(tmp_path / "llama", "bpe", tokenizer_class)
    files = read_tokenizer_files(source)
    files.write(tmp_path / "engine")
    reference = SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    served = AutoTokenizer.from_pretrained(tmp_path / "engine")
    for text in TEXTS:
        assert served(text, add_special_tokens=False)["input_ids"] == reference.encode(text)
        assert files.tokenizer.encode(text, add_special_tokens=False).ids == reference.encode(text)
    assert (tmp_path / "engine" / "tokenizer.json").is_file()
    assert files.converted_from == "tokenizer.model"
    assert served.eos_token == files.ends.values["eos_token"] == END
    assert served.chat_template == (CHAT_TEMPLATE if tokenizer_class else None)


def test_tokenizer_files_a_byte_level_vocabulary_is_converted(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    source = tmp_path / "qwen"
    source.mkdir()
    (source / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    (source / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (source / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    read_tokenizer_files(source).write(tmp_path / "engine")
    served, reference = AutoTokenizer.from_pretrained(tmp_path / "engine"), Qwen2Tokenizer.from_pretrained(source)
    for text in TEXTS:
        assert served(text)["input_ids"] == reference(text)["input_ids"]
        assert served.decode(served(text)["input_ids"]) == reference.decode(reference(text)["input_ids"])


def test_tokenizer_files_an_unfaithful_conversion_is_refused(tmp_path: Path) -> None:
    """transformers makes a BPE of every model that its configuration calls Llama's."""
    source = sentencepiece_folder(tmp_path / "unigram", "unigram")
    with pytest.raises(CheckpointError, match=r"tokenizer.json: missing.*tokenizer.model.*other tokens for .*Sentence"):
        read_tokenizer_files(source)


@pytest.mark.parametrize(
    ("content", "config"),
    [
        (b"no vocabulary at all", {"tokenizer_class": "LlamaTokenizer"}),
        (b"", {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}),
    ],
)
def test_tokenizer_files_what_cannot_be_converted_is_refused_with_the_command_to_run(
    tmp_path: Path, content: bytes, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as refusal:
        read_tokenizer_files(tmp_path)
    said = str(refusal.value)
    assert "tokenizer.json: missing, and transformers cannot convert tokenizer.model here" in said
    assert f"AutoTokenizer.from_pretrained('{tmp_path}').save_pretrained('{tmp_path}')" in said
    assert "pip install" not in said
    found = importlib.util.find_spec
    monkeypatch.setattr(tokenizer_conversion, "find_spec", lambda name: None if name == "tiktoken" else found(name))
    with pytest.raises(CheckpointError, match="pip install tiktoken and build again, or write the file"):
        read_tokenizer_files(tmp_path)


def test_tokenizer_files_without_any_vocabulary_the_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer.json: missing; save the tokenizer with transformers"):
        read_tokenizer_files(tmp_path)
