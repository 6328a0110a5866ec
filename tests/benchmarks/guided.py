"""What guided decoding costs: llguidance as Trident uses it, and xgrammar if it is installed, in turn on one machine.

Compiling a guide, and the mask of each token of random outputs, on the demo checkpoint's tokenizer and, if
mistral-common is installed, on Mistral's tekken (131072 tokens); how many random JSON schemas each library takes, and
whether what comes out is valid; and how much longer a step is whose masks are filled while its engine computes.

    python -m tests.benchmarks.guided
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import jsonschema
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from tests.backend.guided.test_json_schemas import SchemaMaker
from trident_backend.guided.compiler import CompiledGrammar, max_items
from trident_backend.guided.grammars import lark_grammar
from trident_backend.guided.mask_worker import MaskWorker
from trident_backend.guided.memory import GuideMemory
from trident_backend.guided.vocabulary import TokenizerInfo, Vocabulary, read_vocabulary
from trident_backend.sequences.guide import MASK_WORD, Guide, Masks
from trident_backend.sequences.sampling_params import SamplingParams
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.steps import Row
from trident_tools.load.option_values import whole_number

DEMO = Path(__file__).parents[2] / "tools" / "demo" / "checkpoint" / "tokenizer.json"
_NAME = {"type": "string", "maxLength": 20}
_ITEM = {
    "type": "object",
    "properties": {
        "sku": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
        "state": {"enum": ["new", "sent", "returned"]},
        "price": {"type": "number", "minimum": 0, "maximum": 9999},
        "tags": {"type": "array", "items": _NAME, "maxItems": 4},
    },
    "required": ["sku", "state", "price"],
    "additionalProperties": False,
}
SMALL = {
    "type": "object",
    "properties": {"name": _NAME, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
NESTED = {
    "type": "object",
    "properties": {"id": {"type": "integer"}, "items": {"type": "array", "items": _ITEM, "minItems": 1}, "by": SMALL},
    "required": ["id", "items", "by"],
    "additionalProperties": False,
}
RECURSIVE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"value": _NAME, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
            "required": ["value"],
            "additionalProperties": False,
        }
    },
}
SUMS = """root ::= term (("+" | "-") term)*
term ::= factor ("*" factor)*
factor ::= [0-9]+ | "(" root ")" | [a-z_] [a-z0-9_]*
"""
GUIDES = {
    "json": ("json", ""),
    "json_schema small": ("json_schema", json.dumps(SMALL)),
    "json_schema nested": ("json_schema", json.dumps(NESTED)),
    "json_schema recursive": ("json_schema", json.dumps(RECURSIVE)),
    "regex e-mail": ("regex", r"[a-z0-9._]{1,20}@[a-z]{2,12}\.(com|org|net)"),
    "ebnf sums": ("ebnf_grammar", SUMS),
}


class Library(Protocol):
    """One library on one vocabulary."""

    def compile(self, kind: str, text: str) -> Callable[[], Guide]:
        """What starts a guide; raises if the library refuses it."""
        ...


class Llguidance:
    """As Trident uses it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._tokenizer_info = TokenizerInfo(vocabulary)
        self._end_ids = frozenset({vocabulary.size - 1})

    def compile(self, kind: str, text: str) -> Callable[[], Guide]:
        compiled = CompiledGrammar(
            self._tokenizer_info, lark_grammar(kind, text), max_items(kind), GuideMemory(1 << 30).take
        )
        return lambda: compiled.start(self._end_ids)


class Xgrammar:
    """With its own defaults, but for its cache."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        import xgrammar  # type: ignore[import-not-found, import-untyped, unused-ignore]  # noqa: PLC0415

        end_id = vocabulary.size - 1
        texts = [*vocabulary.texts[:end_id], b"<end>"]
        info = xgrammar.TokenizerInfo(texts, vocab_size=vocabulary.size, stop_token_ids=[end_id])
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=2, cache_enabled=False)
        self._matcher = xgrammar.GrammarMatcher

    def compile(self, kind: str, text: str) -> Callable[[], Guide]:
        if kind == "json":
            grammar = self._compiler.compile_builtin_json_grammar()
        else:
            compilers: dict[str, Callable[[str], Any]] = {
                "json_schema": self._compiler.compile_json_schema,
                "regex": self._compiler.compile_regex,
                "ebnf_grammar": self._compiler.compile_grammar,
            }
            grammar = compilers[kind](text)
        return lambda: _XgrammarGuide(self._matcher(grammar))


class _XgrammarGuide:
    failure = None

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    @property
    def is_finished(self) -> bool:
        return bool(self._matcher.is_terminated())

    def fill(self, draft_ids: tuple[int, ...], masks: Masks) -> None:
        assert not draft_ids
        self._matcher.fill_next_token_bitmask(masks.view(np.int32))

    def advance(self, token_id: int) -> None:
        assert self._matcher.accept_token(token_id)


LIBRARIES: dict[str, Callable[[Vocabulary], Library]] = {"llguidance": Llguidance, "xgrammar": Xgrammar}


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.guided", description=__doc__)
    parser.add_argument("--rounds", type=whole_number(1), default=5, help="of compiling and of outputs")
    parser.add_argument("--tokens", type=whole_number(1), default=100, help="of each output")
    parser.add_argument("--schemas", type=whole_number(1), default=200, help="random ones")
    args = parser.parse_args()
    console = Console()
    names = [name for name in LIBRARIES if find_spec(name)]
    for name in LIBRARIES.keys() - set(names):
        console.print(f"{name} is not installed")
    demo = _with_end(read_vocabulary(DEMO, 3072))
    for title, vocabulary in {"demo checkpoint": demo, "tekken": _tekken()}.items():
        if vocabulary is None:
            console.print("mistral-common is not installed: no tekken")
            continue
        libraries = {name: LIBRARIES[name](vocabulary) for name in names}
        _costs(console, title, libraries, vocabulary, args)
        _steps(console, title, libraries["llguidance"], vocabulary)
    _validity(console, {name: LIBRARIES[name](demo) for name in names}, demo, args.schemas)


def _with_end(vocabulary: Vocabulary) -> Vocabulary:
    """One more token, without text, that ends it."""
    texts = [*vocabulary.texts[: vocabulary.size], b"", b""]
    return Vocabulary(vocabulary.size + 1, texts, None)


def _tekken() -> Vocabulary | None:
    found = find_spec("mistral_common")
    if found is None or found.origin is None:
        return None
    raw = json.loads((Path(found.origin).parent / "data" / "tekken_240911.json").read_text())
    num_special = raw["config"]["default_num_special_tokens"]
    size = raw["config"]["default_vocab_size"]
    texts = [base64.b64decode(entry["token_bytes"]) for entry in raw["vocab"][: size - num_special]]
    return _with_end(Vocabulary(size, [*[b""] * num_special, *texts, b""], None))


def _costs(
    console: Console, title: str, libraries: dict[str, Library], vocabulary: Vocabulary, args: argparse.Namespace
) -> None:
    table = Table(
        "guide", "library", "compile ms", "mask us p50", "p99", "max", title=f"{title}, {vocabulary.size} tokens"
    )
    for guide, (kind, text) in GUIDES.items():
        compiling: dict[str, list[float]] = {name: [] for name in libraries}
        masking: dict[str, list[float]] = {name: [] for name in libraries}
        for seed in range(args.rounds):
            for name, library in libraries.items():
                began = time.perf_counter()
                start = library.compile(kind, text)
                compiling[name].append(time.perf_counter() - began)
                _write(start(), vocabulary, _rng(seed), args.tokens, masking[name])
        for name in libraries:
            micros = np.array(masking[name]) * 1e6
            figures = (np.percentile(micros, 50), np.percentile(micros, 99), micros.max())
            table.add_row(guide, name, f"{median(compiling[name]) * 1e3:.1f}", *(f"{value:.0f}" for value in figures))
    console.print(table)


def _write(
    guide: Guide, vocabulary: Vocabulary, rng: random.Random, num_tokens: int, seconds: list[float]
) -> tuple[bytes, bool]:
    """A random output, and whether it came to its end; quotes and brackets are closed half of the time."""
    end_id = vocabulary.size - 1
    masks = np.zeros((1, -(-vocabulary.size // MASK_WORD)), np.uint32)
    text = b""
    for _ in range(num_tokens):
        began = time.perf_counter()
        guide.fill((), masks)
        seconds.append(time.perf_counter() - began)
        choices = _allowed(masks[0], vocabulary.size)
        closing = [token_id for token_id in choices[:400] if vocabulary.texts[token_id] in _CLOSERS]
        if masks[0][end_id // MASK_WORD] >> end_id % MASK_WORD & 1:
            closing.append(end_id)
        token_id = int(rng.choice(closing if closing and rng.random() < 0.3 else choices))
        if token_id == end_id:
            return text, True
        text += vocabulary.texts[token_id]
        guide.advance(token_id)
        if guide.is_finished:
            return text, True
    return text, False


def _allowed(mask: Masks, size: int) -> npt.NDArray[np.intp]:
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")[:size])


def _rng(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 (outputs, not secrets)


def _validity(console: Console, libraries: dict[str, Library], vocabulary: Vocabulary, num_schemas: int) -> None:
    table = Table("library", "taken", "valid", "invalid", "unfinished", title=f"{num_schemas} random schemas")
    for name, library in libraries.items():
        counts = dict.fromkeys(("taken", "valid", "invalid", "unfinished"), 0)
        for seed in range(num_schemas):
            rng = _rng(seed)
            schema = SchemaMaker(rng).schema()
            try:
                guide = library.compile("json_schema", json.dumps(schema))()
            except Exception:  # noqa: S112 (a refusal, of whatever class the library has)
                continue
            counts["taken"] += 1
            text, has_ended = _write(guide, vocabulary, rng, 1000, [])
            counts[_judge(text, schema) if has_ended else "unfinished"] += 1
        table.add_row(name, *map(str, counts.values()))
    console.print(table)


def _judge(text: bytes, schema: dict[str, Any]) -> str:
    try:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    except (jsonschema.ValidationError, ValueError):
        return "invalid"
    return "valid"


def _steps(console: Console, title: str, library: Library, vocabulary: Vocabulary) -> None:
    """Steps of an engine that only waits, with and without guides, in turn."""
    table = Table("sequences", "step ms", "with guides", "masks alone", title=f"{title}: an engine of 20 ms a step")
    start = library.compile(*GUIDES["json_schema nested"])
    for num_sequences in (1, 10, 100):
        worker = MaskWorker(vocabulary.size)
        guides = [start() for _ in range(num_sequences)]
        for seed, guide in enumerate(guides):
            _write(guide, vocabulary, _rng(seed), 10, [])
        sequences = [Sequence(i, [0], 1, 9, SamplingParams(), frozenset(), guide=g) for i, g in enumerate(guides)]
        plain = [Sequence(i, [0], 1, 9, SamplingParams(), frozenset()) for i in range(num_sequences)]
        seconds: dict[str, list[float]] = {"plain": [], "guided": [], "masks": []}
        for _ in range(20):
            for kind, batch, pause in (("plain", plain, 0.02), ("guided", sequences, 0.02), ("masks", sequences, 0.0)):
                began = time.perf_counter()
                wait = worker.begin([Row(sequence, 1) for sequence in batch])
                time.sleep(pause)
                wait()
                seconds[kind].append(time.perf_counter() - began)
        worker.close()
        table.add_row(str(num_sequences), *(f"{median(values) * 1e3:.2f}" for values in seconds.values()))
    console.print(table)


_CLOSERS = frozenset({b'"', b"}", b"]", b",", b"."})

if __name__ == "__main__":
    main()
