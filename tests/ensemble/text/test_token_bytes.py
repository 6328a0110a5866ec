"""The bytes of tokens, joined, are the text that the tokenizers library decodes."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scripts import SCRIPTS
from tests.tokenizer_zoo import HIDDEN, TEXTS, ZOO, tokenizer_of
from trident_ensemble.text.token_bytes import TokenBytes

#: Those in which a token's text does not depend on its neighbours, unless it is the first.
FAMILIES = ("byte_level_bpe", "byte_level_bytes", "llama_2", "gemma", "metaspace_bpe", "unigram")


#: Characters of many scripts.
ALPHABET = "".join(SCRIPTS.values())


@cache
def bytes_of(family: str) -> TokenBytes:
    return TokenBytes(tokenizer_of(family))


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(FAMILIES),
    st.lists(st.sampled_from([*TEXTS, *HIDDEN, "<think>", "é日"]) | st.text(ALPHABET, max_size=12), max_size=5).map(
        "".join
    ),
)
def test_token_bytes_joined_are_the_decoding(family: str, text: str) -> None:
    tokenizer, token_bytes = tokenizer_of(family), bytes_of(family)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    joined = b"".join(token_bytes.of(token_id, begins=place == 0) for place, token_id in enumerate(ids))
    assert joined.decode() == tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_token_bytes_of_every_token_that_is_text_are_what_it_decodes_to(family: str) -> None:
    tokenizer, token_bytes = tokenizer_of(family), bytes_of(family)
    num_whole = 0
    for name, token_id in tokenizer.get_vocab().items():
        alone = tokenizer.decode([token_id], skip_special_tokens=False)
        spelled = token_bytes.of(token_id, begins=True)
        if "\ufffd" not in alone:
            num_whole += 1
            assert spelled.decode() == alone, name
        else:
            assert spelled.decode(errors="replace") in {alone, "\ufffd"}, name
        assert token_bytes.is_special(token_id) == (name in HIDDEN)
    assert num_whole > 100


@pytest.mark.parametrize("family", ZOO)
def test_token_bytes_no_id_is_too_large(family: str) -> None:
    assert bytes_of(family).of(10**6, begins=False) == b""
    assert not bytes_of(family).is_special(10**6)
    assert all(isinstance(bytes_of(family).of(token_id, begins=False), bytes) for token_id in range(200))


def test_token_bytes_a_space_is_left_out_at_the_beginning_alone() -> None:
    tokenizer, token_bytes = tokenizer_of("llama_2"), bytes_of("llama_2")
    token_id = tokenizer.get_vocab()["▁T"]
    assert (token_bytes.of(token_id, begins=True), token_bytes.of(token_id, begins=False)) == (b"T", b" T")
    byte = tokenizer.get_vocab()["<0xE2>"]
    assert token_bytes.of(byte, begins=True) == token_bytes.of(byte, begins=False) == b"\xe2"
