"""The lower bound on a text's tokens holds for every text, and spares tokenizing most of a giant one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.tokenizer_zoo import TEXTS, tokenizer_of
from trident_ensemble.contract.errors import RequestError
from trident_preprocessing.prompt_request import PromptRequest
from trident_preprocessing.prompt_tokenizer import PromptTokenizer
from trident_preprocessing.tokens import token_bound
from trident_preprocessing.tokens.token_bound import has_more_tokens

#: Llama 3's.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def trained(pre_tokenizer: Any, normalizer: Any = None) -> Tokenizer:
    """A byte-level tokenizer with a pre-tokenizer, and with added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([*TEXTS, "   \n\n\t  the then there"] * 3, trainer)
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens([AddedToken("<tool>", lstrip=True, rstrip=True), "longer added token"])
    return tokenizer


TOKENIZERS = {
    "gpt_2": trained(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "llama_3": trained(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        ),
        normalizers.NFC(),
    ),
    "digits": trained(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)])
    ),
    "llama_2": tokenizer_of("llama_2"),
    "unigram": tokenizer_of("unigram"),
}
PIECES = st.one_of(
    st.sampled_from(["a", "the ", " ", "   ", "\n", "\r\n", "\t", "e\u0301", "東京", "😀", "1234567", "'ll", "!?"]),
    st.sampled_from(
        ["<tool>", " <to", "longer added token", "longer ", "<|end|>", "<|en", "x" * 30, " " * 40, "\n" * 20]
    ),
)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beginnings of a few characters; what is left out at their ends covers the longest added token and piece."""
    monkeypatch.setattr(token_bound, "_LEAST_SIZE", 40)
    monkeypatch.setattr(token_bound, "_CHARACTERS", 2)
    monkeypatch.setattr(token_bound, "_LAST_CHARACTERS", 24)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", TOKENIZERS)
def test_token_bound_the_bound_is_never_above_the_number_of_tokens(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    certain = []

    @settings(max_examples=60, deadline=None)
    @given(st.lists(PIECES, min_size=1, max_size=150).map("".join), st.integers(1, 80))
    @example("a the " * 60, 20)
    def check(text: str, num_tokens: int) -> None:
        if has_more_tokens(tokenizer, text, num_tokens):
            certain.append(text)
            assert len(tokenizer.encode(text, add_special_tokens=False).ids) > num_tokens

    check()
    assert certain or name == "llama_2", "words are what it is about, and the one without any has no bound"


@pytest.mark.parametrize("name", ["gpt_2", "llama_3", "digits", "unigram"])
def test_token_bound_most_of_a_giant_prompt_is_never_looked_at(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = TOKENIZERS[name]
    prompts = PromptTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer), 4096)
    monkeypatch.setattr(prompts, "max_text_bytes", 1 << 24)
    looked_at: list[int] = []

    def counted(backend: Any, beginning: str) -> int:
        looked_at.append(len(beginning))
        return num_settled(backend, beginning)

    num_settled = token_bound._num_settled
    monkeypatch.setattr(token_bound, "_num_settled", counted)
    monkeypatch.setattr(prompts, "_tokenizer", Untouched(prompts._tokenizer))
    text = "the words of a very long text, 東京 and 12345 more\n" * 100_000
    with pytest.raises(RequestError, match=r"^text_input: a prompt of more than 4096 tokens is too long"):
        prompts.encode(PromptRequest(text_input=text.encode()))
    assert 0 < sum(looked_at) < len(text) / 50


class Untouched:
    """A tokenizer that is never asked for a whole text."""

    def __init__(self, inner: Any) -> None:
        self.backend_tokenizer = inner.backend_tokenizer

    def __call__(self, *_args: Any, **_options: Any) -> None:
        raise AssertionError("the whole text is tokenized")
