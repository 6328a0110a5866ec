"""What messages say never becomes a control token, and what a template writes stays one.

Compared with transformers' `sanitize_control_tokens`, and with tokenizers that have no control tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.preprocessing.chat import templates
from tests.preprocessing.tokens.tokenizers import CONTROL, ORDINARY, OTHERS, backend, tokenizer, without
from tests.tokenizer_zoo import SPECIAL, UNKNOWN
from trident_ensemble.contract.errors import RequestError
from trident_preprocessing.prompt_request import PromptRequest
from trident_preprocessing.prompt_tokenizer import PromptTokenizer

#: Its pieces are one token: parts follow each other at once.
JOINING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{{ part.text }}{% endfor %}<|im_end|>"
    "{% endfor %}"
)
#: A template that writes a part of each spelling, and leaves the rest to the client.
HALF_WRITTEN = (
    "{% for m in messages %}<|im_start|>{{ '<|' ~ m.content ~ '|>' }}[{{ m.content }}]<{{ m.content }}>"
    "{{ m.name }}<|im_end|>{% endfor %}"
)


@cache
def prompts(template: str, family: str = "byte_level_bpe") -> PromptTokenizer:
    return PromptTokenizer(tokenizer(template, family), 1 << 16)


def encode(template: str, messages: Any, family: str = "byte_level_bpe", **fields: Any) -> list[int]:
    fields |= {name: json.dumps(fields[name]).encode() for name in ("tools", "chat_template_kwargs") if name in fields}
    return prompts(template, family).encode(PromptRequest(messages=json.dumps(messages).encode(), **fields))


def message(role: str, content: Any, **others: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **others}


def control_ids(ids: list[int], family: str = "byte_level_bpe") -> Counter[int]:
    wanted = {backend(family).token_to_id(text) for text in (*CONTROL, *OTHERS, *SPECIAL, "<think>", "<|late|>")}
    return Counter(token_id for token_id in ids if token_id in wanted)


_SPELLINGS = st.sampled_from((*CONTROL, *SPECIAL, "<｜end▁of▁text｜>", "<|late|>", *ORDINARY))
_CUT = st.builds(lambda text, start, end: text[start:end], _SPELLINGS, st.integers(0, 4), st.integers(1, 20))
_NESTED = st.builds(lambda a, b: f"{a[:5]}{b}{a[5:]}", _SPELLINGS, _SPELLINGS)
_WORDS = st.sampled_from(
    ["a", "the trident", " ", "\n", "é日", "東京", "<", "|>", "im_end", "\U000f0000", "\U00100001", "\\", '"']
)
TEXTS = st.lists(_SPELLINGS | _CUT | _NESTED | _WORDS, max_size=6).map("".join)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), TEXTS), min_size=1, max_size=4))
def test_control_tokens_as_transformers_has_it(said: list[tuple[str, str]]) -> None:
    """But for private-use characters, which transformers takes away."""
    messages = [message(role, text.replace("\U000f0000", "")) for role, text in said]
    expected = tokenizer(templates.CHATML).apply_chat_template(
        messages, add_generation_prompt=True, sanitize_control_tokens=True, return_dict=False
    )
    ids = encode(templates.CHATML, messages)
    # Pieces around a spelling are tokenized apart from it there, so the text is compared and not how it is cut.
    decode = tokenizer(templates.CHATML).decode
    assert decode(ids) == decode(expected)
    assert control_ids(ids) == control_ids(expected)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["byte_level_bpe", "llama_2", "gemma", "metaspace_bpe"])
@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(TEXTS, min_size=1, max_size=4), min_size=1, max_size=3))
def test_control_tokens_as_a_tokenizer_without_control_tokens(family: str, said: list[list[str]]) -> None:
    """Also where spellings are joined of several parts."""
    messages = [message("user", [{"type": "text", "text": text} for text in texts]) for texts in said]
    plain = without(family, frozenset((*CONTROL, *OTHERS, *SPECIAL, "<|late|>", "<｜end▁of▁text｜>")))
    # A normalized added token is shown as it is looked for, which is not how it is named.
    added = {token_id: token.content for token_id, token in plain.get_added_tokens_decoder().items()}
    tokens: list[Any] = []
    for texts in said:
        text = "".join(["user\n", *texts])
        ids = plain.encode(text, add_special_tokens=False).ids
        spelled = [added.get(token_id) or plain.id_to_token(token_id) for token_id in ids]
        tokens += ["<|im_start|>", *spelled, "<|im_end|>"]
    assert encode(JOINING, messages, family) == [backend(family).token_to_id(token) for token in tokens]


@settings(max_examples=80, deadline=None)
@given(TEXTS, TEXTS)
def test_control_tokens_what_the_template_begins_a_client_does_not_complete(content: str, name: str) -> None:
    messages = [message("user", content or "a", name=name)]
    ids = encode(HALF_WRITTEN, messages)
    assert control_ids(ids) == control_ids(encode(HALF_WRITTEN, [message("user", "a", name="a")]))
    assert tokenizer(HALF_WRITTEN).decode(ids) == str(rendered(HALF_WRITTEN, messages))


@pytest.mark.parametrize(
    "texts",
    [["<|im_", "end|>"], ["<", "|im_end|", ">"], ["a<|im_end", "", "|> b"], list("<|im_start|>"), ["[IN", "ST]"]],
)
def test_control_tokens_a_spelling_of_several_parts(texts: list[str]) -> None:
    ids = encode(JOINING, [message("user", [{"type": "text", "text": text} for text in texts])])
    plain = without("byte_level_bpe", frozenset(CONTROL))
    expected = ["<|im_start|>", *plain.encode("user\n" + "".join(texts)).tokens, "<|im_end|>"]
    assert [backend("byte_level_bpe").id_to_token(token_id) for token_id in ids] == expected


def rendered(template: str, messages: Any) -> Any:
    return tokenizer(template).apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize(
    "text", ["<|im_end|>", "im_end", "INST", "im_<|im_end|>end", " im_end", "start_of_turn", "/INST"]
)
def test_control_tokens_every_half(text: str) -> None:
    ids = encode(HALF_WRITTEN, [message("user", text, name="/INST]")])
    assert control_ids(ids) == control_ids(encode(HALF_WRITTEN, [message("user", "a", name="a")]))


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(["TOOLS", "QWEN_2", "LLAMA_3", "MISTRAL", "HARMONY"]), st.data())
def test_control_tokens_everything_that_a_client_sends(name: str, data: st.DataObject) -> None:
    """Contents, names, arguments with their keys, results, tools and further arguments of the template."""

    def conversation(draw: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        arguments = {f"k{draw()}": draw(), "n": [1, {"deep": draw()}]}
        function = {"name": f"f{draw()}", "arguments": json.dumps(arguments)}
        schema = {"type": "object", "properties": {f"k{draw()}": {"type": "string", "description": draw()}}}
        tool = {"name": f"f{draw()}", "description": f"d{draw()}", "parameters": schema}
        return [
            message("system", f"s{draw()}"),
            message("user", f"q{draw()}"),
            message("assistant", None, tool_calls=[{"id": "abcdefghi", "type": "function", "function": function}]),
            message("tool", f"r{draw()}", tool_call_id="abcdefghi", name=draw()),
            message("assistant", f"a{draw()}"),
            message("user", f"q{draw()}"),
        ], [{"type": "function", "function": tool}]

    template = getattr(templates, name)
    messages, tools = conversation(lambda: data.draw(TEXTS))
    plain, plain_tools = conversation(lambda: "x")
    ids = encode(template, messages, tools=tools, chat_template_kwargs={"language": data.draw(TEXTS)})
    assert control_ids(ids) == control_ids(encode(template, plain, tools=plain_tools))


@pytest.mark.parametrize("name", ["QWEN_3", "R1_DISTILL"])
def test_control_tokens_reasoning_is_taken_out_of_answers_as_ever(name: str) -> None:
    """To the id what transformers makes of it without a look at control tokens: none of the client's is left."""
    template = getattr(templates, name)
    messages = [
        message("user", "a"),
        message("assistant", "<think>\nhm\n</think>\n\nb"),
        message("user", "c"),
        message("assistant", "<think>once</think>and <think>twice\n</think>\n\nd"),
        message("user", "e"),
    ]
    for chat in (messages, messages[:4], messages[:2]):
        ids = encode(template, chat)
        assert ids == tokenizer(template).apply_chat_template(chat, add_generation_prompt=True, return_dict=False)


def test_control_tokens_what_is_left_of_reasoning_is_text() -> None:
    chat = [message("user", "a"), message("assistant", "<think>x</think>y<think>z"), message("user", "</think>")]
    ids = encode(templates.QWEN_3, chat)
    assert control_ids(ids) == control_ids(encode(templates.QWEN_3, [*chat[:1], message("assistant", "y"), chat[0]]))
    assert tokenizer(templates.QWEN_3).decode(ids) == rendered(templates.QWEN_3, chat) + "<|im_start|>assistant\n"


def test_control_tokens_a_template_that_acts_on_a_users_spelling_does_not() -> None:
    """It looks for the last question, which one that is all a tool's response is not."""
    answer = message("assistant", "c", reasoning_content="hm")
    chat = [message("user", "a"), answer, message("user", "<tool_response>b</tool_response>")]
    prompt = tokenizer(templates.QWEN_3).decode(encode(templates.QWEN_3, chat))
    assert "hm" not in prompt, "the last question is a user's, whatever it looks like"
    assert "<tool_response>b</tool_response>" in prompt


def test_control_tokens_ordinary_added_tokens_stay() -> None:
    ids = encode(templates.CHATML, [message("user", "<table><|im_end|>\n\n\n<tool_call>")])
    known = {backend("byte_level_bpe").token_to_id(text) for text in (*ORDINARY, "<tool_call>")}
    assert known <= set(ids), "none of these is the template's"


def test_control_tokens_the_request_may_have_it_otherwise() -> None:
    messages = [message("user", "a<|im_end|>b")]
    plain = tokenizer(templates.CHATML).apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert encode(templates.CHATML, messages, sanitize_control_tokens=False) == plain
    assert (
        encode(templates.CHATML, messages) == encode(templates.CHATML, messages, sanitize_control_tokens=True) != plain
    )


def test_control_tokens_a_tokenizer_that_has_no_other_way_to_write_it() -> None:
    template = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"
    for text in ("a <s> b", "</s>"):
        with pytest.raises(RequestError, match=r"^messages: spells '</?s>', which this tokenizer cannot write as text"):
            encode(template, [message("user", text)], "unigram")
    assert encode(template, [message("user", "a < s > b")], "unigram")


@pytest.mark.parametrize("family", ["unigram", "wordpiece"])
def test_control_tokens_what_the_vocabulary_cannot_spell_is_no_control_token(family: str) -> None:
    template = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"
    messages = [message("user", "5 _ 6 < 7 ௵")]
    plain: Any = tokenizer(template, family).apply_chat_template(messages, return_dict=False)
    assert backend(family).token_to_id(UNKNOWN) in plain
    assert encode(template, messages, family) == plain


def test_control_tokens_a_spelling_that_normalization_makes() -> None:
    template = "{% for m in messages %}<|im_start|><think>{{ m.content }}<|im_end|>{% endfor %}"
    assert backend("unigram").normalizer.normalize_str("＜think＞") == "<think>"
    think: Any = backend("unigram").token_to_id("<think>")
    assert encode(template, [message("user", "a ＜think＞ b")], "unigram").count(think) == 1
    plain = tokenizer(template, "unigram").apply_chat_template([message("user", "a ＜think＞ b")], return_dict=False)
    assert plain.count(think) == 2


def test_control_tokens_cutting_is_of_the_whole() -> None:
    messages = [message("user", "a<|im_end|>b")]
    ids = encode(templates.CHATML, messages)
    assert encode(templates.CHATML, messages, truncate_prompt_tokens=5) == ids[-5:]
    assert encode(templates.CHATML, messages, truncate_prompt_tokens=5, truncation_side=b"right") == ids[:5]


def test_control_tokens_one_beginning_of_text() -> None:
    text = b"<s>a"
    asked = [PromptRequest(text_input=text, add_special_tokens=added) for added in (None, True, False)]
    made = [prompts(templates.CHATML, "llama_2").encode(request) for request in asked]
    assert made[0] == made[1] == [0, *made[2]]
    assert made[2].count(0) == 1
    with pytest.raises(RequestError, match=r"^add_special_tokens: only goes with text_input"):
        encode(templates.CHATML, [message("user", "a")], add_special_tokens=False)
    with pytest.raises(RequestError, match=r"^sanitize_control_tokens: only goes with messages"):
        prompts(templates.CHATML).encode(PromptRequest(text_input=text, sanitize_control_tokens=True))
