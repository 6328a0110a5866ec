"""Guides from what clients ask for.

Owns the grammars compiled so far, the bounds on what one may cost, and llguidance's view of the tokenizer. Used by any
number of threads at a time; the lock is never held while a grammar is compiled, and llguidance compiles without the
interpreter's lock.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import cast

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from trident_backend.guide import Guide
from trident_backend.guided.follower import Follower
from trident_backend.guided.grammars import bad_guide, lark_grammar
from trident_backend.guided.vocabulary import Vocabulary, read_vocabulary
from trident_ensemble import layout, tensors
from trident_ensemble.errors import CheckpointError, RequestError

TOKENIZER_FILE = "tokenizer.json"


class CompiledGrammar:
    """One grammar, ready to be followed by any number of sequences.

    Args:
        alphabet: the tokenizer's.
        grammar: in llguidance's language.
        max_items: the parser's, for one mask.

    Raises:
        RequestError: the grammar is none, costs too much, or allows no text in this vocabulary.
    """

    def __init__(self, alphabet: Alphabet, grammar: str, max_items: int) -> None:
        self._alphabet = alphabet
        self._grammar = grammar
        self._max_items = max_items
        self._lock = threading.Lock()
        self._matcher = alphabet.matcher(grammar, max_items)
        self._num_copies = 0
        if self._matcher.is_error():
            raise bad_guide(_problem(self._matcher))
        probe = Follower(alphabet.vocabulary, self._matcher.deep_copy(), self._renew, frozenset())
        if not probe.allows_any():
            raise bad_guide("allows no text that the checkpoint's tokens can spell, or costs too much")

    def start(self, end_ids: frozenset[int], *, begins_text: bool = True) -> Guide:
        """The guide of a new sequence.

        Args:
            end_ids: tokens that end the text, allowed exactly where it may end. If there are none, nothing is ever
                forced to end; the guide says when nothing may follow.
            begins_text: whether the output is decoded without its prompt, so that a tokenizer which strips a space
                at the beginning of a text strips the output's.
        """
        with self._lock:
            if self._num_copies >= _MAX_COPIES:
                self._matcher = self._alphabet.matcher(self._grammar, self._max_items)
                self._num_copies = 0
            self._num_copies += 1
            matcher = self._matcher.deep_copy()
        return Follower(self._alphabet.vocabulary, matcher, self._renew, end_ids, begins_text=begins_text)

    def _renew(self) -> LLMatcher:
        """For a guide that has failed, perhaps by what it shared: the next one shares nothing with it either."""
        with self._lock:
            self._num_copies = _MAX_COPIES
        return self._alphabet.matcher(self._grammar, self._max_items)


class Alphabet:
    """A vocabulary as llguidance sees it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._tokenizer = LLTokenizer(cast(TokenizerWrapper, _Texts(vocabulary)))

    def matcher(self, grammar: str, max_items: int) -> LLMatcher:
        """A matcher that shares nothing, at the beginning of the grammar; or one that is an error."""
        limits = LLParserLimits(max_lexer_states=_MAX_LEXER_STATES, step_max_items=max_items, verbose_errors=False)
        return LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)


class _Texts:
    """What llguidance asks of a tokenizer that is not one of its own."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = vocabulary.end_id
        self.tokens = [*vocabulary.texts]
        self.tokens[vocabulary.end_id] = b"\xffend"
        self.special_token_ids: list[int] = []

    def __call__(self, _text: bytes) -> list[int]:
        raise AssertionError("only grammars that force tokens ask for this")


class GuideCompiler:
    """Compiles the guides of one engine's requests, and keeps those that were used last.

    Args:
        engine_folder: holds the tokenizer; it is read when the first guide is asked for.
        vocab_size: of the network; may be larger than the tokenizer's. The ids beyond are never allowed.
        max_grammars: how many are kept.
    """

    def __init__(self, engine_folder: Path, vocab_size: int, *, max_grammars: int = 16) -> None:
        self._tokenizer_file = engine_folder / layout.TOKENIZER_FOLDER / TOKENIZER_FILE
        self._vocab_size = vocab_size
        self._max_grammars = max_grammars
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._alphabet: Alphabet | None = None
        self._grammars: OrderedDict[tuple[str, str], CompiledGrammar] = OrderedDict()

    def compile(self, guide_type: str, guide: str) -> CompiledGrammar:
        """The grammar of a guide; the same one for the same guide while it is kept.

        Args:
            guide_type: `json`, `json_schema`, `regex`, `choice` or `ebnf_grammar`.
            guide: the schema, expression, JSON list of choices, or grammar; of `json` nothing.

        Raises:
            RequestError: naming what is wrong with the guide, or that this checkpoint's tokenizer cannot be guided.
        """
        key = (guide_type, "" if guide_type == "json" else guide)
        with self._lock:
            if key in self._grammars:
                self._grammars.move_to_end(key)
                return self._grammars[key]
        grammar = str(lark_grammar(*key))
        compiled = CompiledGrammar(self._read(), grammar, max_items(guide_type))
        with self._lock:
            compiled = self._grammars.setdefault(key, compiled)
            self._grammars.move_to_end(key)
            while len(self._grammars) > self._max_grammars:
                self._grammars.popitem(last=False)
        return compiled

    def _read(self) -> Alphabet:
        with self._reading:
            if self._alphabet is None:
                try:
                    self._alphabet = Alphabet(read_vocabulary(self._tokenizer_file, self._vocab_size))
                except CheckpointError as error:
                    raise RequestError(
                        tensors.GUIDE_TYPE.name, f"this checkpoint's tokenizer cannot be guided: {error}"
                    ) from None
            return self._alphabet


def max_items(guide_type: str) -> int:
    """How much one mask of such a guide may cost, in items of the parser's table.

    A grammar of a client's own may be ambiguous without a bound, and each of its items then costs more than one before.
    A schema's are cheap, and many where many names are optional.
    """
    return 12_000 if guide_type == "ebnf_grammar" else 200_000


def _problem(matcher: LLMatcher) -> str:
    """The library's message without its quotations of the grammar, which Trident wrote."""
    message = re.split(r"\n +\d+ \| ", str(matcher.get_error()))[0]
    message = re.sub(r"^at \d+\(\d+\): ", "", message)
    kind, _, cause = message.partition("regex parse error:")
    if cause:
        kind = kind.split(" (in regex)")[0].strip().removesuffix(":")
        message = f"{kind[:_MAX_QUOTE]}: {cause.rpartition('error: ')[2]}"
    return message.replace("\n<non-verbose/>", "").strip()[:_MAX_PROBLEM]


#: Of one matcher; one to two KiB each.
_MAX_LEXER_STATES = 25_000
#: After so many the lexer's states, which copies share, are given up.
_MAX_COPIES = 256
_MAX_QUOTE = 100
_MAX_PROBLEM = 500
