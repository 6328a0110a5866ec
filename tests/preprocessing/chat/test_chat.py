"""Prompts of chat messages are those of transformers, for every chat option."""

from __future__ import annotations

import inspect
import json
import threading
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from tests.preprocessing.chat.templates import CHATML, HEADERS, TOOLS
from tests.preprocessing.engines import make_engine_folder
from tests.tokenizer_zoo import SPECIAL, tokenizer_of
from trident_ensemble.contract.errors import RequestError
from trident_preprocessing.chat.chat_template import ChatTemplate
from trident_preprocessing.prompt_request import PromptRequest
from trident_preprocessing.prompt_tokenizer import PromptTokenizer, load_tokenizer

DEMO = Path("tools/demo/checkpoint")
CONVERSATION: list[dict[str, Any]] = [
    {"role": "user", "content": " What is 東京? "},
    {"role": "assistant", "content": "A city 😀"},
    {"role": "user", "content": "Thanks"},
]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@cache
def reference(template: str) -> Any:
    if template == "demo":
        return AutoTokenizer.from_pretrained(DEMO)
    backend = tokenizer_of("byte_level_bpe")
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=SPECIAL[0], eos_token=SPECIAL[1])
    made.chat_template = template
    return made


def prompt_ids(template: str, messages: Any, **fields: Any) -> list[int]:
    fields |= {name: json.dumps(fields[name]).encode() for name in ("tools", "chat_template_kwargs") if name in fields}
    request = PromptRequest(messages=json.dumps(messages).encode(), **fields)
    return PromptTokenizer(reference(template), 4096).encode(request)


def expected_ids(template: str, messages: Any, **options: Any) -> list[int]:
    ids: list[int] = reference(template).apply_chat_template(messages, return_dict=False, **options)
    return ids


@pytest.mark.parametrize("template", [CHATML, HEADERS, TOOLS, "demo"])
class TestEveryTemplate:
    def test_chat_asks_for_an_answer_unless_told_otherwise(self, template: str) -> None:
        with_prompt = expected_ids(template, CONVERSATION, add_generation_prompt=True)
        without = expected_ids(template, CONVERSATION, add_generation_prompt=False)
        assert len(without) < len(with_prompt)
        assert prompt_ids(template, CONVERSATION) == with_prompt
        assert prompt_ids(template, CONVERSATION, add_generation_prompt=True) == with_prompt
        assert prompt_ids(template, CONVERSATION, add_generation_prompt=False) == without
        assert prompt_ids(template, CONVERSATION, continue_final_message=False) == with_prompt

    def test_chat_goes_on_with_the_last_message(self, template: str) -> None:
        messages = CONVERSATION[:2]
        ids = prompt_ids(template, messages, continue_final_message=True)
        assert ids == expected_ids(template, messages, continue_final_message=True)
        assert reference(template).decode(ids).endswith("A city 😀")
        assert prompt_ids(template, messages, continue_final_message=True, add_generation_prompt=False) == ids

    def test_chat_has_one_answer_alone(self, template: str) -> None:
        with pytest.raises(RequestError, match=r"^continue_final_message: cannot go with add_generation_prompt"):
            prompt_ids(template, CONVERSATION, continue_final_message=True, add_generation_prompt=True)

    def test_chat_takes_parts_as_one_text(self, template: str) -> None:
        parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
        ids = prompt_ids(template, [{"role": "user", "content": parts}])
        assert ids == expected_ids(template, [{"role": "user", "content": "one\ntwo"}], add_generation_prompt=True)


def test_chat_arguments_reach_the_template() -> None:
    for template, kwargs in ((CHATML, {"enable_thinking": False}), (HEADERS, {"language": "Latin", "unknown": [1]})):
        ids = prompt_ids(template, CONVERSATION, chat_template_kwargs=kwargs)
        assert ids == expected_ids(template, CONVERSATION, add_generation_prompt=True, **kwargs)
        assert ids != prompt_ids(template, CONVERSATION)


def test_chat_every_argument_of_transformers_own_is_refused() -> None:
    """Whatever the installed version has: a new one would otherwise become the client's to give."""
    names = {
        name
        for function in (PreTrainedTokenizerBase.apply_chat_template, render_jinja_template)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    assert {"sanitize_control_tokens", "conversations", "messages", "documents"} <= names | {"messages"}
    for name in sorted(names - {"documents"} | {"messages", "bos_token", "eos_token"}):
        with pytest.raises(RequestError, match=f"^chat_template_kwargs: {name} cannot be given here"):
            prompt_ids(CHATML, CONVERSATION, chat_template_kwargs={name: 1})


def test_chat_arguments_may_have_any_other_name() -> None:
    template = "{{ name }}{{ render }}{{ messages[0].content }}"
    kwargs = {"name": "n", "render": "r", "<s>": "x"}
    ids = prompt_ids(template, CONVERSATION[:1], chat_template_kwargs=kwargs)
    assert reference(template).decode(ids) == f"nr{CONVERSATION[0]['content']}"


def test_chat_an_argument_that_a_later_transformers_takes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    applied = PreTrainedTokenizerBase.apply_chat_template

    def later(self: Any, conversation: Any, *, run_code: str | None = None, **others: Any) -> Any:
        return applied(self, conversation, run_code=run_code, **others)

    monkeypatch.setattr(PreTrainedTokenizerBase, "apply_chat_template", later)
    with pytest.raises(RequestError, match=r"^chat_template_kwargs: run_code cannot be given here"):
        prompt_ids(CHATML, CONVERSATION, chat_template_kwargs={"run_code": "a"})


def test_chat_tools_and_tool_calls_reach_the_template() -> None:
    call: dict[str, Any] = {
        "id": "c1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Rome", "n": 2}'},
    }
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Will it rain?", "name": "Ada"},
        {"role": "assistant", "content": None, "reasoning": "look it up", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "no"},
    ]
    ids = prompt_ids(TOOLS, messages, tools=[WEATHER])
    messages[1]["tool_calls"][0]["function"] = {"name": "weather", "arguments": {"city": "Rome", "n": 2}}
    assert ids == expected_ids(TOOLS, messages, tools=[WEATHER], add_generation_prompt=True)
    text = reference(TOOLS).decode(ids)
    for part in ("weather={", "[user named Ada]", "thinking look it up", '[call c1 weather city="Rome" n=2]', "for c1"):
        assert part in text
    assert prompt_ids(TOOLS, messages, tools=[]) == prompt_ids(TOOLS, messages)


def test_chat_tools_that_a_template_would_leave_out_are_refused() -> None:
    with pytest.raises(RequestError, match=r"^tools: the checkpoint's chat template does not take tools"):
        prompt_ids(CHATML, CONVERSATION, tools=[WEATHER])


_TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
_JSON = st.recursive(st.none() | st.booleans() | st.integers() | _TEXTS, lambda inner: st.lists(inner, max_size=2))
_ARGUMENTS = st.dictionaries(_TEXTS, _JSON, max_size=3)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Messages as OpenAI's clients send them, and as templates expect them."""
    sent: list[dict[str, Any]] = []
    expected: list[dict[str, Any]] = []
    for role in draw(st.lists(st.sampled_from(["system", "user", "assistant", "tool"]), min_size=1, max_size=5)):
        texts = draw(st.lists(_TEXTS, min_size=1, max_size=3))
        others = draw(st.dictionaries(st.sampled_from(["name", "tool_call_id", "reasoning_content"]), _TEXTS))
        as_sent: Any = texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]
        sent.append({"role": role, "content": as_sent, **others})
        expected.append({"role": role, "content": "\n".join(texts), **others})
        if calls := draw(st.lists(_ARGUMENTS, max_size=2)):
            sent[-1]["tool_calls"] = [
                {"id": "1", "function": {"name": "f", "arguments": json.dumps(arguments)}} for arguments in calls
            ]
            expected[-1]["tool_calls"] = [{"id": "1", "function": {"name": "f", "arguments": item}} for item in calls]
            if draw(st.booleans()):
                sent[-1]["content"] = None
                del expected[-1]["content"]
    return sent, expected


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(conversations(), st.booleans(), st.lists(st.just(WEATHER), max_size=2))
def test_chat_random_conversations(
    conversation: tuple[list[dict[str, Any]], list[dict[str, Any]]], asks: bool, tools: list[dict[str, Any]]
) -> None:
    sent, expected = conversation
    options = {"tools": tools or None, "add_generation_prompt": asks}
    ids = prompt_ids(TOOLS, sent, tools=tools, add_generation_prompt=asks)
    assert ids == expected_ids(TOOLS, expected, **options)


def test_chat_templates_by_name(tmp_path: Path) -> None:
    named = {"default": CHATML, "tool_use": TOOLS}
    prompts = load_tokenizer(make_engine_folder(tmp_path, "gemma", chat_template=named, max_seq_len=4096))
    saved = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    messages = json.dumps(CONVERSATION).encode()
    assert prompts.encode(PromptRequest(messages=messages)) == saved.apply_chat_template(
        CONVERSATION, chat_template=CHATML, add_generation_prompt=True, return_dict=False
    )
    request = PromptRequest(messages=messages, tools=json.dumps([WEATHER]).encode())
    assert prompts.encode(request) == saved.apply_chat_template(
        CONVERSATION, [WEATHER], chat_template=TOOLS, add_generation_prompt=True, return_dict=False
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": b"[]"},
        {"chat_template_kwargs": b"{}"},
        {"add_generation_prompt": False},
        {"continue_final_message": False},
    ],
)
def test_chat_what_goes_with_messages_alone(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=f"^{next(iter(fields))}: only goes with messages"):
        PromptTokenizer(reference(CHATML), 4096).encode(PromptRequest(text_input=b"a", **fields))


@pytest.mark.parametrize("name", ["tools", "chat_template_kwargs"])
def test_chat_inputs_are_texts_of_a_bounded_size(name: str) -> None:
    for value, problem in ((b"\xff", "is not valid UTF-8"), (b" " * 10_000_000, "10000000 bytes are more than")):
        fields: dict[str, Any] = {"messages": json.dumps(CONVERSATION).encode(), name: value}
        with pytest.raises(RequestError, match=f"^{name}: {problem}"):
            PromptTokenizer(reference(TOOLS), 64).encode(PromptRequest(**fields))


def test_chat_a_templates_own_words_reach_the_client_and_are_short() -> None:
    with pytest.raises(RequestError, match=r"^messages: .* refuses them: roles must alternate$"):
        prompt_ids(HEADERS, CONVERSATION[:1] * 2)
    with pytest.raises(RequestError, match=r"^messages: .* refuses them: continue_final_message is set but") as caught:
        prompt_ids(
            "[{% for m in messages %}{{ m.content[:5] }}{% endfor %}]",
            [{"role": "user", "content": "long " * 500}],
            continue_final_message=True,
        )
    assert len(str(caught.value)) < 400


@pytest.mark.slow
@pytest.mark.parametrize(
    "loop",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{{ range(99999) | list | length }}{% endfor %}",
        "{% macro f() %}{% for b in range(99999) %}{{ b.real }}{% endfor %}{% endmacro %}"
        "{% for a in range(99999) %}{% set _ = f() %}{% endfor %}",
    ],
)
def test_chat_a_template_without_end_is_ended(loop: str) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer_of("byte_level_bpe"))
    tokenizer.chat_template = "{% if messages[0].content == 'loop' %}" + loop + "{% endif %}{{ messages[0].content }}"
    chat = ChatTemplate(tokenizer, max_render_seconds=1)
    threads = set(threading.enumerate())
    with pytest.raises(RequestError, match=r"^messages: the checkpoint's chat template takes more than 1 s"):
        chat.render(PromptRequest(messages=b'[{"role": "user", "content": "loop"}]'), 999)
    looped = set(threading.enumerate()) - threads
    assert chat.render(PromptRequest(messages=b'[{"role": "user", "content": "next"}]'), 999) == "next"
    for thread in looped:
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.slow
def test_chat_a_template_that_takes_too_much_is_refused() -> None:
    with pytest.raises(RequestError, match=r"^messages: .* refuses them: MemoryError"):
        prompt_ids("{{ 'a' * 10 ** 14 }}", CONVERSATION)
    with pytest.raises(RequestError, match=r"^messages: .* refuses them: maximum recursion depth"):
        prompt_ids("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", CONVERSATION)
    with pytest.raises(RequestError, match=r"^messages: \d+ bytes are more than the engine's longest prompt"):
        prompt_ids("{% for m in messages %}{{ m.content }}{% endfor %}{{ 'a' * 10 ** 7 }}", CONVERSATION)
