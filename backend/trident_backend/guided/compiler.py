"""Guides from what clients ask for.

Owns the grammars compiled so far, the bounds on what one and all may cost, and llguidance's view of the tokenizer. Used
by any number of threads at a time; the lock is never held while a grammar is compiled, and llguidance compiles without
the interpreter's lock.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import cast
from weakref import WeakSet

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from trident_backend.guided.grammars import LarkGrammar, bad_guide, lark_grammar
from trident_backend.guided.lexer import Lexer
from trident_backend.guided.matcher import STATES_USED_UP, GrammarMatcher
from trident_backend.guided.memory import GuideMemory, Share
from trident_backend.guided.vocabulary import Vocabulary, read_vocabulary
from trident_backend.sequences.guide import Guide
from trident_ensemble.contract import layout, tensors
from trident_ensemble.contract.errors import CheckpointError, RequestError

TOKENIZER_FILE = "tokenizer.json"


class CompiledGrammar:
    """One grammar, ready to be followed by any number of sequences.

    Its sequences share an automaton that may have few states. If they run out of them, they share a large one; and
    whoever runs out of that gets one of its own.

    Args:
        alphabet: the tokenizer's.
        grammar: in llguidance's language.
        max_items: the parser's, for one mask.
        take: takes memory for so many bytes, or raises `UnavailableError`.

    Raises:
        RequestError: the grammar is none, costs too much, or allows no text in this vocabulary.
        UnavailableError: there is no memory for it now.
    """

    def __init__(
        self, alphabet: TokenizerInfo, grammar: LarkGrammar, max_items: int, take: Callable[[int], Share]
    ) -> None:
        self._alphabet = alphabet
        self._grammar = grammar
        self._max_items = max_items
        self._take = take
        self._lock = threading.Lock()
        self._followers: WeakSet[GrammarMatcher] = WeakSet()
        self._slow_followers: WeakSet[GrammarMatcher] = WeakSet()
        self._lexer = self._new_lexer(min(_FEW_LEXER_STATES, _MAX_LEXER_STATES))
        if STATES_USED_UP in str(self._lexer.matcher.get_error() or ""):
            self._lexer = self._new_lexer(_MAX_LEXER_STATES)
        if self._lexer.matcher.is_error():
            raise bad_guide(grammar.located(_problem(self._lexer.matcher), self._problem_with))
        if not self._follow(self._lexer, frozenset()).allows_any():
            raise bad_guide("allows no text that the checkpoint's tokens can spell, or costs too much")

    @property
    def is_in_use(self) -> bool:
        """Whether a sequence follows it."""
        return bool(self._followers)

    def start(self, end_ids: frozenset[int], *, begins_text: bool = True) -> Guide:
        """Return the guide of a new sequence.

        Args:
            end_ids: tokens that end the text, allowed exactly where it may end. If there are none, nothing is ever
                forced to end; the guide says when nothing may follow.
            begins_text: whether the output is decoded without its prompt, so that a tokenizer which strips a space
                at the beginning of a text strips the output's.

        Raises:
            UnavailableError: there is no memory for it now.
        """
        with self._lock:
            if self._lexer.num_copies >= _MAX_COPIES:
                self._lexer = self._new_lexer(self._lexer.max_states)
            lexer = self._lexer
        return self._follow(lexer, end_ids, begins_text=begins_text)

    def _follow(self, lexer: Lexer, end_ids: frozenset[int], *, begins_text: bool = True) -> GrammarMatcher:
        guide = GrammarMatcher(
            self._alphabet.vocabulary, lexer, self._renewed, end_ids, self._slow_followers, begins_text=begins_text
        )
        self._followers.add(guide)
        return guide

    def _renewed(self, used_up: Lexer) -> Lexer:
        """Return an automaton for a sequence whose own has no states left."""
        with self._lock:
            if self._lexer is not used_up and self._lexer.max_states > used_up.max_states:
                return self._lexer
            if used_up.max_states < _MAX_LEXER_STATES:
                self._lexer = self._new_lexer(_MAX_LEXER_STATES)
                return self._lexer
            # The next one shall share nothing with it either.
            self._lexer.num_copies = _MAX_COPIES
        return self._new_lexer(_MAX_LEXER_STATES)

    def _new_lexer(self, max_states: int) -> Lexer:
        share = self._take(max_states * _STATE_BYTES)
        return Lexer(self._alphabet.matcher(str(self._grammar), self._max_items, max_states), max_states, share)

    def _problem_with(self, grammar: LarkGrammar) -> str:
        return _problem(self._alphabet.matcher(str(grammar), self._max_items, _FEW_LEXER_STATES))


class TokenizerInfo:
    """A vocabulary as llguidance sees it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._tokenizer = LLTokenizer(cast(TokenizerWrapper, _Texts(vocabulary)))

    def matcher(self, grammar: str, max_items: int, max_states: int) -> LLMatcher:
        """Return a matcher that shares nothing, at the beginning of the grammar; or one that is an error."""
        limits = LLParserLimits(max_lexer_states=max_states, step_max_items=max_items, verbose_errors=False)
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


class GrammarCompiler:
    """Compiles the guides of one engine's requests, and keeps those that were used last.

    Args:
        engine_folder: holds the tokenizer; it is read when the first guide is asked for.
        vocab_size: of the network; may be larger than the tokenizer's. The ids beyond are never allowed.
        max_grammars: how many are kept.
        max_bytes: what all of them may take, kept or followed; a guide that needs more is refused.
    """

    def __init__(
        self, engine_folder: Path, vocab_size: int, *, max_grammars: int = 16, max_bytes: int = 1 << 30
    ) -> None:
        self._tokenizer_file = engine_folder / layout.TOKENIZER_FOLDER / TOKENIZER_FILE
        self._vocab_size = vocab_size
        self._max_grammars = max_grammars
        self.memory = GuideMemory(max_bytes)
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._alphabet: TokenizerInfo | None = None
        self._grammars: OrderedDict[tuple[str, str], CompiledGrammar] = OrderedDict()

    def compile(self, guide_type: str, guide: str) -> CompiledGrammar:
        """Return the grammar of a guide; the same one for the same guide while it is kept.

        Args:
            guide_type: `json`, `json_schema`, `regex`, `choice` or `ebnf_grammar`.
            guide: the schema, expression, JSON list of choices, or grammar; of `json` a schema or nothing.

        Raises:
            RequestError: naming what is wrong with the guide, or that this checkpoint's tokenizer cannot be guided.
            UnavailableError: the guides in use take all the memory that guides may take.
        """
        key = (guide_type, guide if guide.strip() or guide_type != "json" else "")
        with self._lock:
            if key in self._grammars:
                self._grammars.move_to_end(key)
                return self._grammars[key]
        grammar = lark_grammar(*key)
        compiled = CompiledGrammar(self._read(), grammar, max_items(guide_type), self._take)
        with self._lock:
            compiled = self._grammars.setdefault(key, compiled)
            self._grammars.move_to_end(key)
            while len(self._grammars) > self._max_grammars:
                self._grammars.popitem(last=False)
        return compiled

    def _take(self, num_bytes: int) -> Share:
        return self.memory.take(num_bytes, self._drop_one)

    def _drop_one(self) -> bool:
        """Drop the grammar that nobody follows and that was asked for the longest time ago."""
        with self._lock:
            key = next((key for key, grammar in self._grammars.items() if not grammar.is_in_use), None)
            return key is not None and self._grammars.pop(key) is not None

    def _read(self) -> TokenizerInfo:
        with self._reading:
            if self._alphabet is None:
                try:
                    self._alphabet = TokenizerInfo(read_vocabulary(self._tokenizer_file, self._vocab_size))
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


#: What one state of an automaton takes at most.
_STATE_BYTES = 2 << 10
#: Of an automaton; the first one of a grammar has few, which ordinary grammars never use up.
_MAX_LEXER_STATES = 25_000
_FEW_LEXER_STATES = 1_000
#: After so many the lexer's states, which copies share, are given up.
_MAX_COPIES = 256
_MAX_QUOTE = 100
_MAX_PROBLEM = 500
