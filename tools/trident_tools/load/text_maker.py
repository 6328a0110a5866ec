"""Texts of a given number of tokens.

Owns the making of meaningless text: exact with the model's tokenizer, approximate without. Never decides a length.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from trident_ensemble.contract.errors import ServerError

#: Short, frequent words: a token each, with a space before, for most tokenizers of English text.
_FREQUENT = (
    "the of and to in is it you that he was for on are with as his they be at one have this from or had by hot but "
    "some what there we can out other were all your when up use word how said an each she which do their time if will "
    "way about many then them would write like so these her long make thing see him two has look more day could go "
    "come did my sound no most number who over know water than call first people may down side been now find"
)
_WORDS = tuple(_FREQUENT.split())
_MAX_CANDIDATES = 512
_MAX_TRIES = 8
_MAX_REPAIRS = 64


class TextMaker:
    """Makes texts of a given number of tokens.

    Args:
        tokenizer: counts the tokens; None to count a word as a token.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    @property
    def is_exact(self) -> bool:
        """Whether a tokenizer counts the tokens."""
        return self._tokenizer is not None

    def text(self, random: np.random.Generator, num_tokens: int, prefix: str = "") -> str:
        """Make a text that begins with `prefix` and has `num_tokens` tokens, including those that the tokenizer adds.

        Raises:
            ServerError: no such text was found.
        """
        if self._tokenizer is None:
            return prefix + self._draw(random, _WORDS, num_tokens - len(prefix.split()), prefix)
        for _ in range(_MAX_TRIES):
            text = self._exact(random, num_tokens, prefix)
            if text is not None:
                return text
        raise ServerError(
            f"--tokenizer: no text of exactly {num_tokens} tokens was found; ask for more tokens, or leave it out"
        )

    def count(self, text: str) -> int:
        """Count the tokens of a text, including the special tokens that the tokenizer adds."""
        assert self._tokenizer is not None
        return len(self._tokenizer.encode(text).ids)

    def _exact(self, random: np.random.Generator, num_tokens: int, prefix: str) -> str | None:
        """Try once: take words of one token each, then a few more or fewer until the count is right."""
        missing = num_tokens - self.count(prefix)
        text = prefix + self._draw(random, self._candidates, missing, prefix)
        for _ in range(_MAX_REPAIRS):
            missing = num_tokens - self.count(text)
            if missing == 0:
                return text
            # Half of the difference, because words that merge across their borders are more or less than a token.
            step = (abs(missing) + 1) // 2
            if missing > 0:
                text += self._draw(random, self._candidates, step, text)
            else:
                text = prefix + " ".join(text[len(prefix) :].split(" ")[:-step])
        return None

    @staticmethod
    def _draw(random: np.random.Generator, words: Sequence[str], count: int, before: str) -> str:
        if count <= 0:
            return ""
        drawn = " ".join(words[index] for index in random.integers(len(words), size=count))
        return f" {drawn}" if before else drawn

    @cached_property
    def _candidates(self) -> tuple[str, ...]:
        """The words of the vocabulary that add one token when they follow another word."""
        assert self._tokenizer is not None
        alone = self.count("the")
        vocabulary = (self._tokenizer.decode([index]).strip() for index in range(self._tokenizer.get_vocab_size()))
        plain = (word for word in vocabulary if word.isascii() and word.isalnum())
        words = (
            word
            for word in itertools.chain(_WORDS, plain)
            if self.count(f"the {word}") == alone + 1 and self._is_known(word)
        )
        return tuple(itertools.islice(words, _MAX_CANDIDATES)) or _WORDS

    def _is_known(self, word: str) -> bool:
        """Return whether a word survives tokenization; all unknown words become the same single token."""
        assert self._tokenizer is not None
        return word in self._tokenizer.decode(self._tokenizer.encode(word).ids)


def open_tokenizer(folder: str) -> Tokenizer:
    """Open the tokenizer of a folder with `tokenizer.json`.

    Raises:
        argparse.ArgumentTypeError: there is no such file, or it cannot be read.
    """
    file = Path(folder) / "tokenizer.json"
    if not file.is_file():
        raise argparse.ArgumentTypeError(f"{folder} has no tokenizer.json")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:
        # The library raises plain Exception, whatever is wrong.
        raise argparse.ArgumentTypeError(f"{file} cannot be read: {error}") from None
