"""A build refuses what serving could not load, before it compiles, and tells what a template cannot do."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tests.checkpoints import CHAT_TEMPLATE, edit_json, make_checkpoint
from trident_compiler.model_folder import open_checkpoint
from trident_compiler.openvino.compiler import OpenVINOCompiler
from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import CheckpointError
from trident_preprocessing.prompt_tokenizer import load_tokenizer
from trident_tools import build
from trident_tools.building.text_check import check_text

_SYSTEM_REFUSED = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
_ONE_TURN = "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}"
_BODY = "{% for message in messages %}<|user|>{{ message.content }}ENDING{% endfor %}"
_PARTS = (
    "{% for message in messages %}<|user|>"
    "{% for part in message.content %}{{ part.text }}{% endfor %}<|end|>{% endfor %}"
)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "llama", "llama", num_hidden_layers=1)


@pytest.fixture
def checkpoint(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "llama"))


def check(folder: Path) -> dict[str, str]:
    """The lines of a check; several of one name are joined."""
    opened = open_checkpoint(folder)
    engine = folder.parent / "engine"
    engine.mkdir()
    opened.tokenizer_files.write(engine / layout.TOKENIZER_FOLDER)
    lines: dict[str, str] = {}
    for name, text in check_text(opened, engine).lines:
        lines[name] = f"{lines[name]}\n{text}" if name in lines else text
    return lines


def set_template(folder: Path, template: str | None) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(template) if template is not None else path.unlink()


def test_text_check_an_ordinary_checkpoint_has_nothing_to_warn_of(checkpoint: Path) -> None:
    assert check(checkpoint) == {"template": "chat_template.jinja: renders system, user and assistant"}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (_SYSTEM_REFUSED + CHAT_TEMPLATE, "renders a conversation, but refuses a system message (no system role)"),
        (
            _ONE_TURN + CHAT_TEMPLATE,
            "refuses a system message (one turn); refuses a second turn (one turn)",
        ),
        ("{% set messages = messages[-1:] %}" + CHAT_TEMPLATE, "leaves out what a message says"),
        (_PARTS, "renders system, user and assistant"),
        (None, "none: requests with messages are refused, text_input is served"),
    ],
)
def test_text_check_what_a_template_cannot_do_is_told(checkpoint: Path, template: str | None, expected: str) -> None:
    set_template(checkpoint, template)
    lines = check(checkpoint)
    assert expected in lines["template"]
    assert "warning" not in lines


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('never') }}", "never"),
        ("{% for %}", "Expected an expression"),
        ("{{ messages[0].nothing.at_all }}", "no attribute 'nothing'"),
    ],
)
def test_text_check_a_template_that_renders_nothing_is_refused_by_file(
    checkpoint: Path, template: str, words: str
) -> None:
    set_template(checkpoint, template)
    with pytest.raises(CheckpointError, match=rf"^chat_template.jinja: .*{words}.*; mend the template, or remove it"):
        check(checkpoint)


def test_text_check_a_template_of_the_configuration_is_named_there(checkpoint: Path) -> None:
    set_template(checkpoint, None)
    edit_json(checkpoint / "tokenizer_config.json", chat_template="{% for %}")
    with pytest.raises(CheckpointError, match=r"^tokenizer_config.json: chat_template: "):
        check(checkpoint)


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        (
            "<|system|>",
            r"with 3 '<\|system\|>', which is not an end of text.*eos_token_id in generation_config",
        ),
        ("\n###\n", r"with 1 '<\|user\|>', which is not an end of text"),
        ("<|end|>", None),
    ],
)
def test_text_check_the_end_of_a_turn_must_end_the_text(checkpoint: Path, ending: str, words: str | None) -> None:
    set_template(checkpoint, _BODY.replace("ENDING", ending))
    lines = check(checkpoint)
    assert ("warning" in lines) == (words is not None)
    assert re.search(words or "", lines.get("warning", ""))


def test_text_check_the_end_of_a_turn_is_a_warning_until_a_file_names_it(checkpoint: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        edit_json(checkpoint / name, eos_token_id=1)
    edit_json(checkpoint / "tokenizer_config.json", eos_token="<|user|>")  # noqa: S106
    assert "0 '<|end|>', which is not an end of text" in check(checkpoint)["warning"]
    shutil.rmtree(checkpoint.parent / "engine")
    edit_json(checkpoint / "generation_config.json", eos_token_id=[0, 1])
    assert "warning" not in check(checkpoint)


def test_text_check_a_template_that_ends_a_turn_in_words_is_told(checkpoint: Path) -> None:
    set_template(checkpoint, "{% for message in messages %}{{ message.role }}: {{ message.content }}\n\n{% endfor %}")
    assert r"ends an answer with '\n\nuser: ', which is not a token" in check(checkpoint)["warning"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}, "auto_map.*never run.*remove"),
        ({"chat_template": [{"template": "x"}]}, "repair the tokenizer's files"),
        ({"added_tokens_decoder": {"1": "x"}}, "repair the tokenizer's files.*added_tokens_decoder"),
    ],
)
def test_text_check_a_tokenizer_that_serving_cannot_load_is_refused(
    checkpoint: Path, config: dict[str, Any], words: str
) -> None:
    (checkpoint / "own.py").write_text("raise SystemExit('the code of the checkpoint ran')")
    set_template(checkpoint, None)
    edit_json(checkpoint / "tokenizer_config.json", **config)
    with pytest.raises(CheckpointError, match=rf"tokenizer_config.json: transformers cannot load .*{words}") as refusal:
        check(checkpoint)
    assert str(checkpoint.parent / "engine") not in str(refusal.value)


def test_text_check_another_models_tokenizer_is_refused(checkpoint: Path) -> None:
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["zzz"] = 400
    (checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match=r"tokenizer.json: has 401 tokens, .*vocab_size\) is 400: 'zzz' has id"):
        check(checkpoint)


@pytest.mark.parametrize("config", [{"additional_special_tokens": ["<|more|>"]}, {"pad_token": "<|more|>"}])
def test_text_check_added_tokens_beyond_the_network_are_told(checkpoint: Path, config: dict[str, Any]) -> None:
    edit_json(checkpoint / "tokenizer_config.json", **config)
    added = AutoTokenizer.from_pretrained(checkpoint).convert_tokens_to_ids("<|more|>")
    assert added == 400
    assert "beyond the network's vocabulary of 400: 400 '<|more|>'" in check(checkpoint)["warning"]


def test_text_check_a_class_that_splits_by_its_own_rules_is_told(checkpoint: Path) -> None:
    edit_json(checkpoint / "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer")
    text = "cafe\u0301"
    as_stored = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    assert AutoTokenizer.from_pretrained(checkpoint)(text)["input_ids"] != as_stored
    assert "tokenizer_class 'Qwen2Tokenizer' splits" in check(checkpoint)["warning"]


def test_text_check_a_tokenizer_without_guides_is_told(checkpoint: Path) -> None:
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    tokenizer["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": False}
    (checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "with WordPiece the text of a token depends on its neighbours" in check(checkpoint)["guides"]


def trident_build(*options: str | Path) -> int:
    parser = argparse.ArgumentParser()
    build.add_arguments(parser)
    return build.run(parser.parse_args([str(option) for option in options]))


def test_text_check_the_check_comes_before_the_compiler(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(OpenVINOCompiler, "write", write)
    set_template(checkpoint, "{% for %}")
    with pytest.raises(CheckpointError, match=r"chat_template.jinja"):
        trident_build(checkpoint, "--repository", tmp_path / "repository", "--engine", "openvino", "--quiet")
    assert not (tmp_path / "repository").exists()


def test_text_check_what_passes_is_what_serving_loads(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a tokenizer_config.json, and with a processor's template."""
    (checkpoint / "tokenizer_config.json").unlink()
    (checkpoint / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    set_template(checkpoint, None)
    options = ("--repository", tmp_path / "repository", "--engine", "openvino", "--precision", "fp32")
    trident_build(checkpoint, *options)
    printed = capsys.readouterr().out
    assert "end       0 '<|end|>' (config.json, generation_config.json)" in printed
    assert "template  chat_template.json: renders system, user and assistant" in printed
    load_tokenizer(tmp_path / "repository" / "core" / "1")


def test_text_check_tells_how_tool_calls_are_written(checkpoint: Path) -> None:
    set_template(
        checkpoint,
        "{%- if tools %}{{ tools | tojson }}{% endif -%}"
        "{% for message in messages %}{{ '<|' + message.role + '|>' + (message.content or '') }}"
        "{% for call in message.tool_calls or [] %}"
        "{{ '<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' }}{% endfor %}"
        "{{ '<|end|>' }}{% endfor %}",
    )
    assert "hermes" in check(checkpoint)["tools"]
