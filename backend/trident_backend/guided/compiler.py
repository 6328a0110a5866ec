"""The compilation of the guides that clients ask for.

Owns the grammars compiled so far, and the bounds on the cost of each and of all together. Any number of threads may use
it at the same time. Never holds its lock while a grammar is compiled, which llguidance does without the interpreter's
lock.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from weakref import WeakSet

from llguidance import LLMatcher

from trident_backend.guided.grammars import LarkGrammar, bad_guide, lark_grammar
from trident_backend.guided.matcher import STATES_USED_UP, GrammarMatcher, Lexer
from trident_backend.guided.memory import GuideMemory, Reservation
from trident_backend.guided.vocabulary import TokenizerInfo, read_vocabulary
from trident_backend.sequences.guide import Guide
from trident_ensemble.contract import layout, tensors
from trident_ensemble.contract.errors import CheckpointError, RequestError


class CompiledGrammar:
    """One grammar that any number of sequences can follow.

    Its sequences first share a small automaton. When the states of that are used up they share a large one, and a
    sequence that uses up the large one is given its own.

    Args:
        tokenizer_info: the tokenizer's vocabulary as llguidance sees it.
        grammar: the grammar in llguidance's language.
        max_items: items of the parser's table that one mask may take.
        take: reserves memory of that many bytes, or raises `UnavailableError`.

    Raises:
        RequestError: the grammar is invalid, costs too much, or allows no text in this vocabulary.
        UnavailableError: there is no memory for it now.
    """

    def __init__(
        self, tokenizer_info: TokenizerInfo, grammar: LarkGrammar, max_items: int, take: Callable[[int], Reservation]
    ) -> None:
        self._tokenizer_info = tokenizer_info
        self._grammar = grammar
        self._max_items = max_items
        self._take = take
        self._lock = threading.Lock()
        self._matchers: WeakSet[GrammarMatcher] = WeakSet()
        self._slow_matchers: WeakSet[GrammarMatcher] = WeakSet()
        self._lexer = self._new_lexer(min(_FEW_LEXER_STATES, _MAX_LEXER_STATES))
        if STATES_USED_UP in str(self._lexer.matcher.get_error() or ""):
            self._lexer = self._new_lexer(_MAX_LEXER_STATES)
        if self._lexer.matcher.is_error():
            raise bad_guide(grammar.located(_problem(self._lexer.matcher), self._problem_with))
        if not self._matcher(self._lexer, frozenset()).allows_any():
            raise bad_guide("allows no text that the checkpoint's tokens can spell, or costs too much")

    @property
    def is_in_use(self) -> bool:
        """Whether any sequence follows this grammar."""
        return bool(self._matchers)

    def start(self, end_ids: frozenset[int], *, begins_text: bool = True) -> Guide:
        """Return the guide of a new sequence.

        Args:
            end_ids: tokens that end the text; they are allowed exactly where it may end. With none of them nothing
                forces the text to end, and the guide says when nothing may follow.
            begins_text: whether the output is decoded without its prompt, so that a tokenizer that strips a space
                from the beginning of a text strips it from the output.

        Raises:
            UnavailableError: there is no memory for it now.
        """
        with self._lock:
            if self._lexer.num_copies >= _MAX_COPIES:
                self._lexer = self._new_lexer(self._lexer.max_states)
            lexer = self._lexer
        return self._matcher(lexer, end_ids, begins_text=begins_text)

    def _matcher(self, lexer: Lexer, end_ids: frozenset[int], *, begins_text: bool = True) -> GrammarMatcher:
        matcher = GrammarMatcher(
            self._tokenizer_info.vocabulary,
            lexer,
            self._recompile,
            end_ids,
            self._slow_matchers,
            markers=self._grammar.markers,
            begins_text=begins_text,
        )
        self._matchers.add(matcher)
        return matcher

    def _recompile(self, used_up: Lexer) -> Lexer:
        """Return an automaton for a sequence whose own has no states left."""
        with self._lock:
            if self._lexer is not used_up and self._lexer.max_states > used_up.max_states:
                return self._lexer
            if used_up.max_states < _MAX_LEXER_STATES:
                self._lexer = self._new_lexer(_MAX_LEXER_STATES)
                return self._lexer
            # No later sequence may share the automaton that is used up.
            self._lexer.num_copies = _MAX_COPIES
        return self._new_lexer(_MAX_LEXER_STATES)

    def _new_lexer(self, max_states: int) -> Lexer:
        memory = self._take(max_states * _STATE_BYTES)
        return Lexer(self._tokenizer_info.matcher(str(self._grammar), self._max_items, max_states), max_states, memory)

    def _problem_with(self, grammar: LarkGrammar) -> str:
        return _problem(self._tokenizer_info.matcher(str(grammar), self._max_items, _FEW_LEXER_STATES))


class GrammarCompiler:
    """Compiles the guides of one engine's requests, and keeps the grammars that were used last.

    Args:
        engine_folder: the folder of the engine, whose tokenizer is read when the first guide is compiled.
        vocab_size: width of the network's logits; ids beyond the tokenizer's are never allowed.
        max_grammars: how many grammars are kept.
        max_bytes: memory for all grammars that are kept or followed; a guide that needs more is refused.
    """

    def __init__(
        self, engine_folder: Path, vocab_size: int, *, max_grammars: int = 16, max_bytes: int = 1 << 30
    ) -> None:
        self._tokenizer_file = engine_folder / layout.TOKENIZER_FOLDER / layout.TOKENIZER_FILE
        self._vocab_size = vocab_size
        self._max_grammars = max_grammars
        self.memory = GuideMemory(max_bytes)
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._tokenizer_info: TokenizerInfo | None = None
        self._grammars: OrderedDict[tuple[str, str], CompiledGrammar] = OrderedDict()

    def compile(self, guide_type: str, guide: str) -> CompiledGrammar:
        """Return the grammar of a guide; equal guides get the same grammar while it is kept.

        Args:
            guide_type: `json`, `json_schema`, `regex`, `choice`, `ebnf_grammar` or `structural_tag`.
            guide: the schema, the expression, the JSON list of choices, the grammar or the tag; with `json`, a schema
                or an empty text.

        Raises:
            RequestError: the guide is wrong, or this checkpoint's tokenizer cannot be guided.
            UnavailableError: the guides in use take all the memory that guides may take.
        """
        key = (guide_type, guide if guide.strip() or guide_type != "json" else "")
        with self._lock:
            if key in self._grammars:
                self._grammars.move_to_end(key)
                return self._grammars[key]
        info = self._read() if guide_type == "structural_tag" else None
        grammar = lark_grammar(*key, info.vocabulary.added if info else None)
        compiled = CompiledGrammar(info or self._read(), grammar, max_items(guide_type), self._take)
        with self._lock:
            compiled = self._grammars.setdefault(key, compiled)
            self._grammars.move_to_end(key)
            while len(self._grammars) > self._max_grammars:
                self._grammars.popitem(last=False)
        return compiled

    def _take(self, num_bytes: int) -> Reservation:
        return self.memory.take(num_bytes, self._drop_one)

    def _drop_one(self) -> bool:
        """Drop the least recently used grammar that no sequence follows; return whether there was one."""
        with self._lock:
            key = next((key for key, grammar in self._grammars.items() if not grammar.is_in_use), None)
            return key is not None and self._grammars.pop(key) is not None

    def _read(self) -> TokenizerInfo:
        with self._reading:
            if self._tokenizer_info is None:
                try:
                    self._tokenizer_info = TokenizerInfo(read_vocabulary(self._tokenizer_file, self._vocab_size))
                except CheckpointError as error:
                    raise RequestError(
                        tensors.GUIDE_TYPE.name, f"this checkpoint's tokenizer cannot be guided: {error}"
                    ) from None
            return self._tokenizer_info


def max_items(guide_type: str) -> int:
    """Return how many items of the parser's table one mask of such a guide may take.

    A client's own grammar may be ambiguous without a bound, and each item of it then costs more than the one before.
    The items of a schema are cheap, and there are many of them where many names are optional.
    """
    return 12_000 if guide_type == "ebnf_grammar" else 200_000


def _problem(matcher: LLMatcher) -> str:
    """Return the library's message without its quotations of the grammar, which Trident wrote."""
    message = re.split(r"\n +\d+ \| ", str(matcher.get_error()))[0]
    message = re.sub(r"^at \d+\(\d+\): ", "", message)
    kind, _, cause = message.partition("regex parse error:")
    if cause:
        kind = kind.split(" (in regex)")[0].strip().removesuffix(":")
        message = f"{kind[:_MAX_QUOTE]}: {cause.rpartition('error: ')[2]}"
    return message.replace("\n<non-verbose/>", "").strip()[:_MAX_PROBLEM]


#: Memory that one state of an automaton takes at most.
_STATE_BYTES = 2 << 10
#: States of a large automaton, and of a grammar's first one, which ordinary grammars never use up.
_MAX_LEXER_STATES = 25_000
_FEW_LEXER_STATES = 1_000
#: After this many copies a lexer, whose states its copies share, is replaced by a new one.
_MAX_COPIES = 256
_MAX_QUOTE = 100
_MAX_PROBLEM = 500
