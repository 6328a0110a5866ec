"""What templates in the manner of well-known checkpoints take, as a build finds it out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.preprocessing.chat import templates
from tests.preprocessing.engines import make_engine_folder
from tests.preprocessing.tokens.tokenizers import tokenizer
from trident_ensemble.contract.errors import CheckpointError
from trident_preprocessing.chat import template_probe
from trident_preprocessing.chat.template_probe import probe_profiles, probe_template, write_template_profiles
from trident_preprocessing.chat.template_profile import ROLES, ContentForm, NullForm, TemplateProfile, read_profiles
from trident_preprocessing.chat.template_renderer import TemplateRenderer

TEXT, PARTS, EITHER = ContentForm


def profile_of(template: str) -> TemplateProfile:
    return probe_profiles(TemplateRenderer(tokenizer(template)))["default"]


@pytest.mark.parametrize(
    ("name", "as_text", "developer"),
    [
        ("CHATML", False, False),
        ("HEADERS", False, False),
        ("TOOLS", False, False),
        ("QWEN_2", False, False),
        ("QWEN_3", False, False),
        ("LLAMA_3", False, False),
        ("MISTRAL", False, False),
        ("R1_DISTILL", True, False),
        ("GEMMA", False, False),
        ("PHI", False, False),
        ("HARMONY", False, True),
        ("COMMAND", False, False),
    ],
)
def test_template_probe_families(name: str, as_text: bool, developer: bool) -> None:
    profile = profile_of(getattr(templates, name))
    assert (profile.arguments_as_text, profile.takes_developer) == (as_text, developer)
    if name not in ("CHATML", "HEADERS", "GEMMA", "PHI", "COMMAND"):  # These take no calls.
        assert profile.null_content is NullForm.NONE
    forms = set(profile.content.values())
    assert forms == ({TEXT} if name != "GEMMA" else {TEXT, EITHER})


def test_template_probe_content_is_found_out_for_each_role() -> None:
    gemma = profile_of(templates.GEMMA).content
    # Of the system's parts that template reads the first alone, and it has no other roles.
    assert {role for role in ROLES if gemma[role] is EITHER} == {"user", "assistant"}
    assert set(profile_of(templates.PARTS_ALONE).content.values()) == {PARTS}


@pytest.mark.parametrize("dumped", ["{{ m.content }}", "{{ m.content | tojson }}", "{{ m.content | string | trim }}"])
def test_template_probe_a_list_that_is_written_whole_is_not_taken(dumped: str) -> None:
    forms = profile_of("{% for m in messages %}" + dumped + "{% endfor %}").content
    assert set(forms.values()) == {TEXT}


CALL = (
    "{%- for m in messages %}{{ m.role }}{% if m.tool_calls %}BODY"
    "{% for c in m.tool_calls %}{{ c.function.name }} ARGUMENTS{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("written", "as_text"),
    [
        ("{{ c.function.arguments | tojson }}", False),
        ("{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}", False),
        ("{% for k, v in c.function.arguments | items %}<{{ k }}>{{ v | tojson }}{% endfor %}", False),
        ("{{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}", False),
        ("{{ '(' + c.function.arguments + ')' }}", True),
        ("{{ c.function.arguments }}", True),
        ("{{ '%s' | format(c.function.arguments) }}", True),
        ("{{ c.function.arguments | string | trim }}", True),
        ("", False),
    ],
)
def test_template_probe_arguments(written: str, as_text: bool) -> None:
    assert profile_of(CALL.replace("ARGUMENTS", written)).arguments_as_text is as_text


@pytest.mark.parametrize(
    ("written", "null"),
    [
        ("", NullForm.NONE),
        ("{% if m.content is none %}-{% endif %}", NullForm.NONE),
        ("{% if m.content %}{{ m.content }}{% endif %}", NullForm.NONE),
        ("{{ m.content }}", NullForm.ABSENT),
        ("{{ m.content | trim }}", NullForm.ABSENT),
        ("{{ m.content + '' }}", NullForm.EMPTY),
        ("{% if m.content is none %}{{ raise_exception('none') }}{% endif %}", NullForm.ABSENT),
        ("{% if m.content is not string %}{{ raise_exception('no text') }}{% endif %}", NullForm.EMPTY),
    ],
)
def test_template_probe_no_content(written: str, null: NullForm) -> None:
    template = CALL.replace("BODY", written).replace("ARGUMENTS", "{{ c.function.arguments | tojson }}")
    assert profile_of(template).null_content is null


def test_template_probe_an_empty_text_that_hides_the_calls() -> None:
    assert profile_of(templates.R1_DISTILL).empty_is_null
    for name in ("QWEN_2", "QWEN_3", "LLAMA_3", "MISTRAL", "HARMONY", "CHATML", "PARTS_ALONE"):
        assert not profile_of(getattr(templates, name)).empty_is_null


@pytest.mark.parametrize(
    ("template", "takes"),
    [
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}", False),
        ("{% for m in messages if m.role != 'developer' %}{{ m.content }}{% endfor %}", False),
        ("{% for m in messages %}{{ 'Q' if m.role == 'user' else 'A' }}{{ m.content }}{% endfor %}", False),
        ("{% for m in messages %}{{ 'S' if m.role == 'developer' else m.role }}{{ m.content }}{% endfor %}", True),
        ("{% for m in messages if m.role in ['user', 'developer'] %}{{ m.role }}{{ m.content }}{% endfor %}", True),
    ],
)
def test_template_probe_the_developer(template: str, takes: bool) -> None:
    assert profile_of(template).takes_developer is takes


def test_template_probe_tokens_that_are_put_together_are_written_too() -> None:
    assert {"<|user|>", "<|assistant|>", "<|end|>"} <= set(profile_of(templates.PHI).written)
    assert "<tool_call>" not in profile_of(templates.PHI).written
    assert {"<tool_call>", "</think>", "<|im_end|>"} <= set(profile_of(templates.QWEN_3).written)


def test_template_probe_a_build_writes_what_serving_reads(tmp_path: Path) -> None:
    named = {"default": templates.CHATML, "tool_use": templates.R1_DISTILL}
    for template, names in ((named, set(named)), (None, set())):
        folder = tmp_path / f"{len(names)}"
        folder.mkdir()
        make_engine_folder(folder, "byte_level_bpe", chat_template=template)
        write_template_profiles(folder)
        profiles = read_profiles(folder)
        assert profiles == probe_template(folder / "tokenizer")
        assert set(profiles) == names
    assert not names or profiles["tool_use"].arguments_as_text


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('not today') }}", "not today"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages[0].content + 1 }}", "can only concatenate str"),
        ("{{ messages[9].content.upper() }}", "has no (attribute|element)"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "more than 1 s"),
    ],
)
def test_template_probe_a_template_that_renders_nothing_fails_the_build(
    template: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_engine_folder(tmp_path, "byte_level_bpe")
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text(template)
    monkeypatch.setattr(template_probe, "_MAX_SECONDS", 1)
    with pytest.raises(CheckpointError, match=rf"^the chat template .*{said}"):
        write_template_profiles(tmp_path)


def test_template_probe_a_tokenizer_that_cannot_be_loaded_fails_the_build(tmp_path: Path) -> None:
    folder = make_engine_folder(tmp_path, "byte_level_bpe") / "tokenizer"
    config: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Custom", "auto_map": {"AutoTokenizer": ["custom.Custom", "custom.Custom"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"(?s)^the tokenizer cannot be served: .*trust_remote_code"):
        write_template_profiles(tmp_path)
