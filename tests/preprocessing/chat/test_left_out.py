"""What a template leaves out is refused by name; ordinary conversations are not."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tests.preprocessing.chat import templates
from tests.preprocessing.tokens.tokenizers import tokenizer
from tests.tokenizer_zoo import SPECIAL
from trident_ensemble.contract.errors import RequestError
from trident_preprocessing.chat.chat_template import ChatTemplate
from trident_preprocessing.prompt_request import PromptRequest

NAMES = (
    "CHATML", "HEADERS", "TOOLS", "QWEN_2", "QWEN_3", "LLAMA_3", "MISTRAL", "R1_DISTILL", "GEMMA", "PHI", "HARMONY",
    "COMMAND", "PARTS_ALONE", "PAIRS",
)  # fmt: skip
#: Those of the above that write calls.
TAKE_CALLS = ("TOOLS", "QWEN_2", "QWEN_3", "LLAMA_3", "MISTRAL", "R1_DISTILL", "HARMONY")
TAKE_TOOLS = ("TOOLS", "QWEN_2", "LLAMA_3", "MISTRAL", "HARMONY")
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "what the sky does",
        "strict": True,
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "where"}}},
    },
}
CALL: dict[str, Any] = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
}
CHATS: dict[str, ChatTemplate] = {}


def rendered(template: str, messages: Any, **fields: Any) -> str:
    source = getattr(templates, template, template)
    if source not in CHATS:
        CHATS[source] = ChatTemplate(tokenizer(source))
    fields |= {name: json.dumps(fields[name]).encode() for name in ("tools", "chat_template_kwargs") if name in fields}
    return CHATS[source].render(PromptRequest(messages=json.dumps(messages).encode(), **fields), 1 << 20)


def message(role: str, content: Any, **others: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **others}


HISTORY = [
    message("user", "Will it rain?"),
    message("assistant", None, tool_calls=[CALL]),
    message("tool", "sunny", tool_call_id="abcdefghi", name="weather"),
]


@pytest.mark.parametrize("name", NAMES)
def test_left_out_ordinary_conversations_are_served(name: str) -> None:
    nothing: dict[str, Any] = dict.fromkeys(("refusal", "audio", "function_call", "tool_calls")) | {"annotations": []}
    chat = [
        message("user", "What is 東京?", name="ada"),
        message("assistant", " \n", reasoning_content="hm", id="msg_1", **nothing),
        message("user", [{"type": "text", "text": "and "}, {"type": "text", "text": "so?"}]),
        message("assistant", "A city", annotations=[{"type": "url_citation", "title": "here"}]),
        message("user", "Thanks", cache_control={"type": "ephemeral"}),
    ]
    prompt = rendered(name, chat)
    for text in ("What is 東京?", "and ", "so?", "A city", "Thanks"):
        assert text.strip() in prompt
    assert rendered(name, chat[:4], continue_final_message=True).endswith("A city")
    assert rendered(name, [message("system", "Be kind"), *chat[:1]]).count("Be kind") == 1


@pytest.mark.parametrize("name", NAMES)
def test_left_out_an_answer_with_a_list_of_no_calls_is_an_answer(name: str) -> None:
    answers = message("assistant", "A city", tool_calls=[]), message("assistant", "A city")
    with_list, without = (rendered(name, [HISTORY[0], answer, HISTORY[0]]) for answer in answers)
    assert with_list == without


@pytest.mark.parametrize("name", TAKE_CALLS)
def test_left_out_tool_histories_are_served(name: str) -> None:
    prompts = {rendered(name, [HISTORY[0], made, HISTORY[2]]) for made in calls()}
    (prompt,) = prompts
    assert prompt.count("None") == 0
    for text in ("weather", "city", "Rome", "sunny"):
        assert text in prompt


def calls() -> list[dict[str, Any]]:
    as_object = {**CALL, "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    return [
        message("assistant", None, tool_calls=[CALL]),
        {"role": "assistant", "tool_calls": [CALL]},
        message("assistant", None, tool_calls=[as_object], refusal=None),
        message("assistant", "", tool_calls=[CALL]),
        message("assistant", [], tool_calls=[CALL]),
    ]


def test_left_out_a_template_that_concatenates_is_rendered_as_by_jinja_alone() -> None:
    """Of transformers' own, `apply_chat_template` drops the null and with it the call."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(templates.R1_DISTILL)
    expected = template.render(messages=HISTORY, bos_token=SPECIAL[0], add_generation_prompt=True)
    assert '```json\n{"city": "Rome"}\n```' in expected
    assert rendered("R1_DISTILL", HISTORY) == expected


@pytest.mark.parametrize("name", ["GEMMA", "PARTS_ALONE"])
def test_left_out_parts_stay_parts(name: str) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    chat = [message("user", parts), message("assistant", parts), message("user", parts)]
    expected = tokenizer(getattr(templates, name)).apply_chat_template(
        copy.deepcopy(chat), tokenize=False, add_generation_prompt=True
    )
    assert expected.count("one two") + expected.count("onetwo") == 3
    assert rendered(name, chat) == expected


@pytest.mark.parametrize("name", NAMES)
def test_left_out_what_the_developer_says_is_in_the_prompt(name: str) -> None:
    chat = [message("developer", "Answer BANANA"), message("user", "hi")]
    prompt = rendered(name, chat)
    assert "Answer BANANA" in prompt
    if name == "HARMONY":
        assert "<|start|>developer<|message|># Instructions\nAnswer BANANA" in prompt
    assert prompt == rendered(name, [message("system", "Answer BANANA"), message("user", "hi")])


@pytest.mark.parametrize(
    ("name", "messages", "where", "role"),
    [
        ("QWEN_2", [message("user", "a"), message("critic", "a")], "[1].content", "critic"),
        ("QWEN_3", [message("critic", "a"), message("user", "a")], "[0].content", "critic"),
        ("PAIRS", [message("user", "a"), message("system", "a"), message("user", "b")], "[1].content", "system"),
        ("PAIRS", [message("developer", "a"), message("developer", "b"), HISTORY[0]], "[1].content", "developer"),
        ("PAIRS", [HISTORY[0], HISTORY[1]], "[1].tool_calls[0].function.name", "assistant"),
        ("PAIRS", [HISTORY[0], HISTORY[2]], "[1].content", "tool"),
        ("R1_DISTILL", [message("system", "a"), message("system", "b"), message("user", "c")], "[0].content", "system"),
        ("LLAMA_3", [HISTORY[0], message("assistant", "I look", tool_calls=[CALL])], "[1].content", "assistant"),
        ("GEMMA", [message("system", [{"type": "text", "text": "a"}]), message("user", "b"), HISTORY[1]],
         "[2].tool_calls[0].function.name", "assistant"),
        ("HARMONY", [HISTORY[0], message("assistant", None, tool_calls=[CALL, CALL])],
         "[1].tool_calls[1].function.name", "assistant"),
        ("CHATML", [message("user", "a", refusal="no")], "[0].refusal", "user"),
        ("CHATML", [message("user", "a", prefix=True)], "[0].prefix", "user"),
        ("CHATML", [message("assistant", "a", audio={"id": "1"})], "[0].audio", "assistant"),
        ("CHATML", [message("assistant", "a", function_call={"name": "f", "arguments": "{}"})],
         "[0].function_call", "assistant"),
        ("{% for m in messages if 'secret' not in m.content %}{{ m.content }}{% endfor %}",
         [message("user", "a"), message("user", "a secret")], "[1].content", "user"),
        ("{% for m in messages %}{{ m.content[:5] }}{% endfor %}", [message("user", "a text")], "[0].content", "user"),
        ("{% for m in messages[-2:] %}{{ m.content }}{% endfor %}", [message("user", "a")] * 3, "[0].content", "user"),
    ],
)  # fmt: skip
def test_left_out_what_is_left_out_is_named(name: str, messages: Any, where: str, role: str) -> None:
    with pytest.raises(RequestError) as caught:
        rendered(name, messages)
    assert str(caught.value) == f"messages: {where}: the checkpoint's chat template leaves it out (role {role!r})"


def test_left_out_a_template_that_reads_the_first_part_gets_one_text() -> None:
    template = "{% for m in messages %}{{ m.content if m.content is string else m.content[0].text }}{% endfor %}"
    parts = [{"type": "text", "text": text} for text in ("a", "b", " ")]
    assert rendered(template, [message("user", parts)]) == "a\nb\n "


@pytest.mark.parametrize("name", TAKE_TOOLS)
def test_left_out_tools_that_are_taken(name: str) -> None:
    prompt = rendered(name, HISTORY[:1], tools=[WEATHER])
    for text in ("weather", "what the sky does", "city"):
        assert text in prompt
    of_none: list[dict[str, Any]] = [{}, {"properties": {}}, {"type": "object"}, {"type": "object", "required": []}]
    for parameters in of_none:
        none = {"type": "function", "function": {"name": "now", "description": "", "parameters": parameters}}
        assert "now" in rendered(name, HISTORY[:1], tools=[none])


def test_left_out_tools_that_are_left_out() -> None:
    for name in set(NAMES) - set(TAKE_TOOLS):
        with pytest.raises(
            RequestError, match=r"^tools: the checkpoint's chat template does not take tools; leave them out"
        ):
            rendered(name, HISTORY[:1], tools=[WEATHER])
    names_alone = "{{ tools and tools[0].function.name }}{{ messages[0].content }}"
    with pytest.raises(RequestError, match=r"^tools: \[0\]\.function\.description: .* leaves it out$"):
        rendered(names_alone, HISTORY[:1], tools=[WEATHER])
    only_mentions = "{# tools #}{% if tools is defined %}{% endif %}{{ messages[0].content }}"
    with pytest.raises(RequestError, match=r"^tools: the checkpoint's chat template does not take tools"):
        rendered(only_mentions, HISTORY[:1], tools=[WEATHER])


def test_left_out_what_is_compared_has_its_effect() -> None:
    style = "{% for m in messages %}{{ 'Please ' if m.style == 'polite' }}{{ m.content }}{% endfor %}"
    assert rendered(style, [message("user", "go", style="polite")]) == "Please go"
    with pytest.raises(RequestError, match=r"^messages: \[0\]\.style: "):
        rendered(style, [message("user", "go", style="rude")])


def test_left_out_what_a_template_changes_has_reached_the_prompt() -> None:
    for change in ("upper", "lower", "title", "trim", "tojson", "urlencode", "replace('<', '')", "e"):
        template = "{% for m in messages %}{{ m.content | " + change + " }}{% endfor %}"
        assert rendered(template, [message("user", ' a "Text" <b> ')])


def test_left_out_reasoning_of_earlier_answers_may_be_left_out() -> None:
    chat = [message("user", "a"), message("assistant", "<think>\nhm\n</think>\n\nb"), message("user", "c")]
    for name in ("QWEN_3", "R1_DISTILL"):
        prompt = rendered(name, chat)
        assert "hm" not in prompt
        assert "b<|" in prompt


#: Which roles a template writes, by its text; a message of another is left out, wherever it stands.
_ROLES = ("system", "user", "assistant", "tool", "critic")


@settings(max_examples=60, deadline=None)
@given(
    st.sets(st.sampled_from(_ROLES), min_size=1),
    st.lists(st.tuples(st.sampled_from(_ROLES), st.text(st.sampled_from("ab \n"), max_size=3)), min_size=1, max_size=6),
)
def test_left_out_random_conversations(written: set[str], said: list[tuple[str, str]]) -> None:
    """Texts are short and alike, so that one that is left out stands in another that is not."""
    template = "{% for m in messages if m.role in [ROLES] %}{{ m.role ~ m.content | trim }};{% endfor %}"
    template = template.replace("ROLES", ", ".join(map(repr, sorted(written))))
    lost = [place for place, (role, text) in enumerate(said) if text.strip() and role not in written]
    messages = [message(role, text) for role, text in said]
    if not lost:
        kept = [(role, text.strip()) for role, text in said if role in written]
        assert rendered(template, messages) == "".join(f"{role}{text};" for role, text in kept)
        return
    with pytest.raises(RequestError, match=rf"^messages: \[{lost[0]}\]\.content: .* \(role '{said[lost[0]][0]}'\)$"):
        rendered(template, messages)
