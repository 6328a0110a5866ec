"""A prompt is cut as transformers cuts it, and only when asked."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from tests.preprocessing.engines import CHAT_TEMPLATE
from tests.tokenizer_zoo import TEXTS, llama_2, tokenizer_of
from trident_ensemble.contract.errors import RequestError
from trident_preprocessing.prompt_request import PromptRequest
from trident_preprocessing.prompt_tokenizer import PromptTokenizer

MESSAGES = [{"role": "user", "content": " ".join(TEXTS)}]


@cache
def tokenizer(kind: str) -> Any:
    """`both`: special tokens are added at the beginning and at the end."""
    backend = llama_2() if kind == "both" else tokenizer_of(kind)
    if kind == "both":
        ends = [("<s>", 0), ("</s>", 1)]
        backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    made = PreTrainedTokenizerFast(tokenizer_object=backend)
    made.chat_template = CHAT_TEMPLATE
    return made


def cut(kind: str, text: bytes, num_tokens: int | None, side: bytes | None = None, max_seq_len: int = 64) -> list[int]:
    request = PromptRequest(text_input=text, truncate_prompt_tokens=num_tokens, truncation_side=side, max_tokens=10)
    return PromptTokenizer(tokenizer(kind), max_seq_len).encode(request)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["byte_level_bpe", "llama_2", "both", "unigram"]),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=60) | st.sampled_from(["</s>a<s>b" * 4, *TEXTS]),
    st.integers(1, 40),
    st.sampled_from(["left", "right", None]),
)
def test_truncation_text_is_cut_as_transformers_cuts_it(
    kind: str, text: str, num_tokens: int, side: str | None
) -> None:
    reference = tokenizer(kind)
    num_special = reference.num_special_tokens_to_add()
    if not (whole := reference(text)["input_ids"]):
        return
    if num_tokens <= num_special < len(whole):
        with pytest.raises(RequestError, match=f"^truncate_prompt_tokens: .* at least {num_special + 1}$"):
            cut(kind, text.encode(), num_tokens)
        return
    reference.truncation_side = side or "left"
    expected = reference(text, truncation=True, max_length=num_tokens)["input_ids"]
    assert cut(kind, text.encode(), num_tokens, side.encode() if side else None) == expected


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_messages_are_cut_as_they_come(side: str) -> None:
    reference = tokenizer("both")
    whole = reference.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    for num_tokens in (1, 17, len(whole) - 1, len(whole), len(whole) + 1):
        request = PromptRequest(
            messages=json.dumps(MESSAGES).encode(),
            truncate_prompt_tokens=num_tokens,
            truncation_side=side.encode(),
        )
        kept = whole[-num_tokens:] if side == "left" else whole[:num_tokens]
        assert PromptTokenizer(reference, 4096).encode(request) == kept


def test_truncation_the_longest_prompt_leaves_room_for_the_answer() -> None:
    whole = tokenizer("llama_2")(TEXTS[0] * 9)["input_ids"]
    ids = cut("llama_2", (TEXTS[0] * 9).encode(), -1)
    assert ids == [whole[0], *whole[-53:]]
    assert cut("llama_2", (TEXTS[0] * 9).encode(), -1, b"right") == whole[:54]


@pytest.mark.parametrize("max_tokens", [None, -1, 64, 65])
def test_truncation_the_longest_prompt_needs_max_tokens(max_tokens: int | None) -> None:
    request = PromptRequest(text_input=b"a", truncate_prompt_tokens=-1, max_tokens=max_tokens)
    with pytest.raises(RequestError, match=r"^max_tokens: (is missing|must be from 0 to 63 beside a prompt)"):
        PromptTokenizer(tokenizer("llama_2"), 64).encode(request)


def test_truncation_what_cannot_be_asked_for() -> None:
    with pytest.raises(
        RequestError, match=r"^truncation_side: needs truncate_prompt_tokens; without it nothing is cut"
    ):
        cut("llama_2", b"a", None, b"left")
    for num_tokens in (0, -2):
        with pytest.raises(RequestError, match=f"^truncate_prompt_tokens: must be at least 1, .* not {num_tokens}"):
            cut("llama_2", b"a", num_tokens)
    for side in (b"", b"Left", b"middle", b"\xff" * 1000):
        with pytest.raises(RequestError, match=r"^truncation_side: must be left or right, not b'") as caught:
            cut("llama_2", b"a", 1, side)
        assert len(str(caught.value)) < 250


def test_truncation_a_text_to_be_cut_may_be_larger_than_what_fits() -> None:
    prompts = PromptTokenizer(tokenizer("llama_2"), 64)
    text = b"one two " * (prompts.max_text_bytes // 4)
    with pytest.raises(RequestError, match=r"^text_input: .* more than the engine's longest prompt can have"):
        prompts.encode(PromptRequest(text_input=text))
    assert len(prompts.encode(PromptRequest(text_input=text, truncate_prompt_tokens=20))) == 20
    messages = json.dumps([{"role": "user", "content": text.decode()}]).encode()
    assert len(prompts.encode(PromptRequest(messages=messages, truncate_prompt_tokens=20))) == 20
    with pytest.raises(
        RequestError, match=r"^text_input: 1048577 .* more than a prompt that is cut may have; at most 1048576"
    ):
        prompts.encode(PromptRequest(text_input=b"a" * ((1 << 20) + 1), truncate_prompt_tokens=20))


def test_truncation_nothing_is_cut_unless_asked() -> None:
    text = (TEXTS[0] * 2).encode()
    assert cut("llama_2", text, None) == tokenizer("llama_2")(text.decode())["input_ids"]
