#!/usr/bin/env python3
"""Train the demo checkpoint: a very small Llama which answers short questions about Python.

The result is an ordinary Hugging Face folder (config.json, model.safetensors in bfloat16, a byte-level BPE tokenizer
with a chat template), so that the first answer of a fresh installation is English, with nothing downloaded.

It needs torch, transformers, tokenizers and safetensors, and no other data than what every CPython carries: the
language reference in ``pydoc_data.topics``, the docstrings of the standard library, and ``conversations.json`` next
to this file, which holds the small talk and the question templates. The checkpoint in ``checkpoint/`` was trained from
the documentation of CPython 3.11 (3.11.7, Linux) on one x86-64 core with AVX-512, which
took 39 minutes while other work ran on the same machine::

    python tools/demo/train.py --output tools/demo/checkpoint --threads 1

All choices are drawn from ``--seed``: the same Python, torch, number of threads and steps give the same corpus,
tokenizer and order of samples, and on the same kind of CPU the same weights. With ``--minutes`` the schedule follows
the clock wherever that is ahead of the steps, and the result depends on the speed of the machine.

The output folder is replaced as a whole when everything has been written; Ctrl-C before that leaves it as it was.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import inspect
import json
import math
import os
import platform
import random
import re
import shutil
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data import topics as pydoc_topics
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

BEGIN, END, SYSTEM, USER, ASSISTANT, PAD = SPECIAL_TOKENS = (
    "<|begin|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|pad|>",
)
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message['role'] not in ['system', 'user', 'assistant'] -%}
        {{- raise_exception('Unknown role: ' + message['role']) -}}
    {%- endif -%}
    {{- '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>' -}}
{%- endif -%}
"""

VOCAB_SIZE = 3072
MAX_POSITIONS = 1024
TOKENS_PER_STEP = 2048
# Rows are short for most of the training, which is cheaper, and long in the last part of it.
ROW_LENGTH, LONG_ROW_LENGTH, LONG_ROWS_FROM = 256, 512, 0.8
# The share of chat tokens grows from the first value to the second.
CHAT_SHARE = (0.35, 0.85)
PEAK_LEARNING_RATE, FINAL_LEARNING_RATE, WARM_UP_STEPS = 4e-3, 1e-4, 60

# Folders of the standard library which hold no documentation worth reading.
SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__", "distutils", "encodings", "ensurepip", "idlelib", "lib-dynload", "lib2to3", "msilib",
        "pydoc_data", "site-packages", "test", "tests", "turtledemo", "_pyrepl",
    }
)  # fmt: skip
# Modules whose public names can be asked about.
ASKED_MODULES = (
    "abc", "argparse", "array", "ast", "asyncio", "base64", "bisect", "calendar", "collections", "contextlib", "copy",
    "csv", "dataclasses", "datetime", "decimal", "difflib", "enum", "fnmatch", "fractions", "functools", "gc",
    "getpass", "glob", "gzip", "hashlib", "heapq", "html", "importlib", "inspect", "io", "itertools", "json", "logging",
    "math", "mimetypes", "operator", "os", "os.path", "pathlib", "pickle", "platform", "pprint", "queue", "random",
    "re", "sched", "secrets", "shelve", "shlex", "shutil", "signal", "socket", "sqlite3", "statistics", "string",
    "struct", "subprocess", "sys", "tempfile", "textwrap", "threading", "time", "timeit", "traceback", "types",
    "typing", "unicodedata", "unittest", "urllib.parse", "urllib.request", "uuid", "warnings", "weakref",
    "xml.etree.ElementTree", "zipfile", "zlib",
)  # fmt: skip
# Classes outside of builtins whose methods can be asked about.
ASKED_CLASSES = ("collections.Counter", "collections.deque", "datetime.datetime", "pathlib.Path", "threading.Lock")

# Quotes, dashes, the ellipsis and the tabulator, by their code points.
ASCII_MARKS = {
    0x201C: '"', 0x201D: '"', 0x2018: "'", 0x2019: "'", 0x2014: "--", 0x2013: "-", 0x2026: "...", 0x09: "    ",
}  # fmt: skip

SAMPLE_QUESTIONS = (
    "Hello!",
    "Who are you?",
    "What is a for loop?",
    "What does len do?",
    "What does str.split do?",
    "How do I use the with statement?",
    "What is the json module?",
    "What is the capital of Spain?",
    "Thanks!",
)
SAMPLE_PROMPTS = ("The with statement is used", "A function is")


# ------------------------------------------------------------------------------------------------------ documents


def plain(text: str) -> str:
    """The text with typographic quotes and dashes replaced by ASCII ones, and without emphasis marks."""
    text = text.translate(ASCII_MARKS)
    text = re.sub(r":[\w:]+:`~?([^`<]+)`", r"\1", text)
    text = text.replace("``", "`")
    text = re.sub(r"(?<![\w*])\*\*?([A-Za-z_][^*\n]{0,40}?)\*\*?(?![\w*])", r"\1", text)
    return "\n".join(line.rstrip() for line in text.split("\n")).strip()


def topic_paragraphs(text: str) -> list[str]:
    """The paragraphs of a page of the language reference, without titles, grammar and cross references."""
    paragraphs: list[str] = []
    for block in re.split(r"\n\s*\n", text):
        lines = [line.rstrip() for line in block.strip("\n").split("\n")]
        if (
            "::=" in block
            or re.fullmatch(r"[*=\-~^\"+]{3,}", lines[-1])
            or lines[0].startswith(("See also", "+--", "|"))
        ):
            continue
        if not lines[0].startswith("   "):
            lines = [re.sub(r'"([A-Za-z_][\w.]*(?:\(\))?)"', r"\1", line) for line in lines]
        paragraph = plain("\n".join(lines)) if not lines[0].startswith("   ") else "\n".join(lines)
        paragraph = re.sub(r"\s*\(see\s+(?:section\s+)?[^()]*\)", "", paragraph)
        if paragraph:
            paragraphs.append(paragraph)
    return paragraphs


def source_docstrings() -> Iterator[tuple[str, str]]:
    """The qualified name and the docstring of everything that is written in Python, in the order of the file names."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED_FOLDERS.intersection(parts) or parts[0].startswith(("config-", "_sysconfigdata")):
            continue
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
        pending: list[tuple[str, ast.AST]] = [(module, tree)]
        while pending:
            name, node = pending.pop(0)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                if doc := ast.get_docstring(node):
                    yield name, doc
                for child in ast.iter_child_nodes(node):
                    if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                        pending.append((f"{name}.{child.name}", child))


def compiled_docstrings() -> Iterator[tuple[str, str]]:
    """The qualified name and the docstring of everything in the modules which are written in C."""
    extensions = Path(sysconfig.get_path("stdlib"), "lib-dynload")
    names = {path.name.split(".")[0] for path in extensions.glob("*.so")} if extensions.is_dir() else set()
    for module_name in sorted(names.union(sys.builtin_module_names)):
        if module_name.startswith(("_test", "_xx", "xx", "_tkinter")):
            continue
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            continue
        for name, value in public_members(module):
            if doc := own_doc(value):
                yield f"{module_name}.{name}", doc
            if inspect.isclass(value) and value.__module__ in (module_name, "builtins"):
                for method_name, method in public_members(value):
                    if doc := own_doc(method):
                        yield f"{name}.{method_name}", doc


def public_members(owner: object) -> list[tuple[str, Any]]:
    """The public names of a module or class with their values, sorted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = getattr(owner, "__all__", None) if inspect.ismodule(owner) else None
        names = sorted(set(exported or dir(owner)))
        members = [(name, getattr(owner, name, None)) for name in names if not name.startswith("_")]
    return [(name, value) for name, value in members if value is not None]


def own_doc(value: object) -> str:
    """The docstring of a class, a function or a module, and nothing for a mere instance, which has that of its type."""
    if not (
        inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value) or inspect.isdatadescriptor(value)
    ):
        return ""
    doc = inspect.getdoc(value)
    return doc if isinstance(doc, str) else ""


def read_documents() -> tuple[list[list[str]], list[str]]:
    """The pages of the language reference as lists of paragraphs, and the docstrings, each with its name above it."""
    pages = [topic_paragraphs(pydoc_topics.topics[key]) for key in sorted(pydoc_topics.topics)]
    seen: set[str] = set()
    docstrings: list[str] = []
    for name, doc in [*compiled_docstrings(), *source_docstrings()]:
        text = plain(doc)
        if len(text) >= 40 and text not in seen:
            seen.add(text)
            docstrings.append(f"{name}\n\n{text}")
    return [page for page in pages if page], docstrings


# -------------------------------------------------------------------------------------------------- conversations


@dataclass(frozen=True)
class Fact:
    """Something to ask about: its names, what kind of thing it is, what to answer, and possibly an example."""

    kind: str
    names: tuple[str, ...]
    answer: str
    example: str = ""
    weight: float = 1.0


VERBS = frozenset(
    {
        "Accept", "Acquire", "Add", "Adjust", "Allow", "Append", "Apply", "Assert", "Attempt", "Block", "Break",
        "Build", "Calculate", "Call", "Cast", "Change", "Check", "Choose", "Clear", "Close", "Combine", "Compare",
        "Compile", "Compress", "Compute", "Concatenate", "Configure", "Construct", "Convert", "Copy", "Count",
        "Create", "Decode", "Decompress", "Decrement", "Define", "Delete", "Describe", "Deserialize", "Determine",
        "Disable", "Dispatch", "Display", "Divide", "Draw", "Dump", "Emulate", "Enable", "Encode", "Ensure", "Enter",
        "Escape", "Evaluate", "Execute", "Exit", "Expand", "Extend", "Extract", "Fill", "Filter", "Find", "Finish",
        "Flush", "Force", "Format", "Generate", "Get", "Give", "Handle", "Hash", "Help", "Implement", "Import",
        "Increment", "Indicate", "Initialize", "Insert", "Inspect", "Install", "Invoke", "Iterate", "Join", "List",
        "Load", "Locate", "Log", "Look", "Make", "Map", "Mark", "Match", "Merge", "Modify", "Move", "Multiply",
        "Normalize", "Notify", "Open", "Output", "Pad", "Parse", "Partition", "Perform", "Pickle", "Pop", "Prepare",
        "Print", "Process", "Produce", "Prompt", "Provide", "Push", "Put", "Quote", "Raise", "Read", "Receive",
        "Record", "Register", "Release", "Reload", "Remove", "Rename", "Repeat", "Replace", "Report", "Represent",
        "Request", "Reset", "Resolve", "Restore", "Retrieve", "Return", "Reverse", "Rotate", "Round", "Run", "Save",
        "Schedule", "Search", "Seek", "Select", "Send", "Serialize", "Set", "Show", "Shuffle", "Shut", "Skip",
        "Sleep", "Sort", "Split", "Start", "Stop", "Store", "Strip", "Substitute", "Subtract", "Suspend", "Swap",
        "Switch", "Take", "Tell", "Terminate", "Test", "Transform", "Translate", "Traverse", "Truncate", "Try",
        "Unescape", "Unpack", "Unregister", "Update", "Use", "Validate", "Verify", "Wait", "Wake", "Walk", "Wrap",
        "Write", "Yield",
    }
)  # fmt: skip


def third_person(verb: str) -> str:
    """``Return`` becomes ``returns``."""
    word = verb.lower()
    if re.search(r"(s|x|z|ch|sh)$", word):
        return word + "es"
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + "s"


def first_sentences(doc: str, limit: int = 200) -> str:
    """The beginning of a docstring: whole sentences of its first paragraph, or nothing where it has none."""
    doc = plain(doc)
    # A signature, which the docstrings of C functions begin with, sometimes several of them.
    doc = re.sub(r"\A(?:[\w.]+\([^\n]*?\)(?: *--?> *[\w\[\], ()]+?)?(?:\.\s+|\s*--?\s+|:\s+|\s*\n\s*|\Z))+", "", doc)
    paragraph = " ".join(re.split(r"\n\s*\n|\n(?=\s*[-*>])", doc.strip())[0].split()).replace("`", "")
    # The colon before a list or an example ends the sentence just as well.
    paragraph = re.sub(r"\s*::?$", ".", paragraph)
    if (
        not re.fullmatch(r"[\w \-.,;:'\"()/\[\]=+<>*!?%&{}@#]+", paragraph, re.ASCII)
        or ">>>" in paragraph
        or "->" in paragraph
    ):
        return ""
    if not re.search(r"[.!?)]$", paragraph):
        paragraph += "."
    taken = ""
    for sentence in re.split(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)\s+(?=[A-Z\"'(])", paragraph):
        if taken and len(taken) + len(sentence) > limit:
            break
        taken = f"{taken} {sentence}".strip()
    return taken if 12 <= len(taken) <= 1.4 * limit and " " in taken else ""


def statement_about(name: str, sentence: str) -> str:
    """The first sentences of a docstring as a statement about the thing with that name."""
    first, _, rest = sentence.partition(" ")
    if first in VERBS:
        rest, stop, more = rest.partition(". ")
        rest = re.sub(r"\band (return|add)\b", lambda m: f"and {m[1]}s", rest)
        rest = re.sub(rf"^and ({'|'.join(sorted(VERBS)).lower()})\b", lambda m: f"and {third_person(m[1])}", rest)
        return f"{name} {third_person(first)} {rest}{stop}{more}"
    if first.endswith("s") and any(first == third_person(verb).capitalize() for verb in VERBS):
        return f"{name} {first.lower()} {rest}"
    article = first in ("A", "An", "The")
    if article and not re.search(r"^\w+ (?:is|are|was|will|can|has)\b", rest):
        return f"{name} is {first.lower()} {rest}"
    return f"{name}: {sentence}"


def fact_of(name: str, value: object, kind: str, weight: float, short: Sequence[str] = ()) -> Fact | None:
    """What the docstring of a thing says about it, if that can be said in a sentence or two."""
    sentence = first_sentences(own_doc(value))
    if not sentence:
        return None
    if kind == "exception":
        answer = (
            f"{name} is an exception: {sentence[0].lower() + sentence[1:] if sentence[1:2].islower() else sentence}"
        )
        answer = re.sub(r"exception: (?:this exception is )?raised\b", "exception which is raised", answer)
        return Fact(kind, (name, *short), answer, weight=weight)
    if kind == "module" and (
        own := re.match(rf"(?:the|this) (?:{re.escape(name)} )?(?:extension )?module ", sentence, re.I)
    ):
        return Fact(kind, (name, *short), f"The {name} module {sentence[own.end() :]}", weight=weight)
    label = f"The {name} module" if kind == "module" else name
    return Fact(kind, (name, *short), statement_about(label, sentence), weight=weight)


def kind_of(value: object) -> str:
    """Which templates a public member of a module is asked about with; nothing for constants and submodules."""
    if inspect.isclass(value):
        return "exception" if issubclass(value, BaseException) else "class"
    return "function" if callable(value) else ""


def read_facts(concepts: Sequence[Fact]) -> tuple[list[Fact], list[Fact]]:
    """What can be asked about builtins, and about the rest of the standard library."""
    builtins = importlib.import_module("builtins")
    taken = {name for fact in concepts for name in fact.names}
    core: list[Fact | None] = []
    # The bare name of a method means the one of the first of these types which has it.
    for owner in (str, list, dict, set, bytes, tuple, int, float, frozenset, bytearray, complex):
        for name, value in public_members(owner):
            if kind_of(value) == "function":
                short = () if name in taken or hasattr(builtins, name) else (name,)
                taken.add(name)
                popular = 2.0 if owner in (str, list, dict, set) else 0.5
                core.append(fact_of(f"{owner.__name__}.{name}", value, "method", popular, short))
    for name, value in public_members(builtins):
        if name not in taken and (kind := kind_of(value)):
            core.append(fact_of(name, value, kind, 1.0 if kind == "exception" else 3.0))
            taken.add(name)
    library: list[Fact | None] = []
    for module_name in ASKED_MODULES:
        module = importlib.import_module(module_name)
        core.append(fact_of(module_name, module, "module", 2.0))
        for name, value in public_members(module):
            full = f"{module_name}.{name}"
            # Names that are imported from elsewhere belong there, except for those of a module's private half.
            home = str(getattr(value, "__module__", None) or module_name).lstrip("_")
            at_home = home.split(".")[0] == module_name.split(".")[0] or home in ("posix", "posixpath")
            if at_home and full not in taken and not hasattr(builtins, name) and (kind := kind_of(value)):
                taken.add(full)
                library.append(fact_of(full, value, kind, 1.0))
            if full in ASKED_CLASSES:
                library.extend(
                    fact_of(f"{full}.{method_name}", method, "method", 0.5)
                    for method_name, method in public_members(value)
                    if kind_of(method) == "function"
                )
    return [fact for fact in core if fact], [fact for fact in library if fact]


@dataclass
class Conversations:
    """Draws conversations: a few turns of small talk and of questions about Python, worded a little differently."""

    system: list[str]
    questions: dict[str, list[str]]
    talk: list[dict[str, Any]]
    concepts: list[Fact]
    core: list[Fact]
    library: list[Fact]
    weights: dict[int, list[float]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Conversations:
        """The hand-written conversations of a file, with the facts that this Python's docstrings give."""
        data = json.loads(path.read_text(encoding="utf-8"))
        concepts = [
            Fact("concept", tuple(entry["names"]), entry["answer"], entry.get("example", ""), entry.get("weight", 1.0))
            for entry in data["concepts"]
        ]
        core, library = read_facts(concepts)
        return cls(data["system"], data["questions"], data["talk"], concepts, core, library)

    def all_text(self) -> Iterator[str]:
        """Every answer and question once, for the tokenizer."""
        for fact in [*self.concepts, *self.core, *self.library]:
            yield from (self.questions[fact.kind][0].replace("{name}", name) for name in fact.names)
            yield fact.answer
            yield fact.example
        for entry in self.talk:
            yield from entry["ask"]
            yield from entry["say"]

    def draw(self, rng: random.Random) -> list[tuple[str, str]]:
        """One conversation, as pairs of a role's token and a text."""
        turns: list[tuple[str, str]] = []
        if rng.random() < 0.25:
            turns.append((SYSTEM, rng.choice(self.system)))
        for _ in range(rng.choices((1, 2, 3, 4), (60, 20, 12, 8))[0]):
            for question, answer in self._exchange(rng):
                turns += [(USER, question), (ASSISTANT, answer)]
        return turns

    def _exchange(self, rng: random.Random) -> list[tuple[str, str]]:
        choice = rng.random()
        if choice < 0.15:
            entry = self._weighted(rng, self.talk, lambda item: float(item.get("weight", 1.0)))
            return [(self._vary(rng, rng.choice(entry["ask"])), rng.choice(entry["say"]))]
        facts = self.concepts if choice < 0.47 else self.core if choice < 0.77 else self.library
        fact = self._weighted(rng, facts, lambda item: item.weight)
        name = fact.names[0] if rng.random() < 0.4 else rng.choice(fact.names)
        shown = f"{fact.answer}\n\nFor example:\n\n{fact.example}"
        if fact.example and rng.random() < 0.35:
            return [(self._ask(rng, "usage", name), shown)]
        exchanges = [(self._ask(rng, fact.kind, name), fact.answer)]
        if fact.example and rng.random() < 0.25:
            exchanges.append(
                (self._vary(rng, rng.choice(self.questions["follow_up"])), f"For example:\n\n{fact.example}")
            )
        return exchanges

    def _ask(self, rng: random.Random, kind: str, name: str) -> str:
        return self._vary(rng, rng.choice(self.questions[kind]).replace("{name}", name))

    @staticmethod
    def _vary(rng: random.Random, question: str) -> str:
        """The question as somebody else may type it."""
        if rng.random() < 0.2:
            question = question.rstrip("?.!")
        if rng.random() < 0.2 and question[1:2].islower():
            question = question[0].lower() + question[1:]
        elif rng.random() < 0.05 and question[1:2].islower():
            opening = rng.choice(("Hello, ", "Hi! ", "Please: ", "So, ", "Ok, ", "Now, "))
            question = opening + (question if opening.endswith("! ") else question[0].lower() + question[1:])
        return question

    def _weighted(self, rng: random.Random, items: list[Any], weight: Callable[[Any], float]) -> Any:
        cumulated = self.weights.get(id(items))
        if cumulated is None:
            total = 0.0
            cumulated = self.weights[id(items)] = [total := total + weight(item) for item in items]
        return rng.choices(items, cum_weights=cumulated)[0]


# ------------------------------------------------------------------------------------------------------ tokenizer


def token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The numbers of the special tokens."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return {token: vocabulary[token] for token in SPECIAL_TOKENS}


def train_tokenizer(texts: Iterator[str]) -> Tokenizer:
    """A byte-level BPE tokenizer, which begins a plain prompt with the begin token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A",
        pair=f"{BEGIN} $A $B:1",
        special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))],
    )
    return tokenizer


# -------------------------------------------------------------------------------------------------------- samples


@dataclass(frozen=True)
class Batch:
    """Rows of samples which do not see one another: tokens, positions within the sample, and who may look at whom."""

    tokens: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor


class Samples:
    """Packs documents and conversations into batches."""

    def __init__(self, tokenizer: Tokenizer, conversations: Conversations, seed: int) -> None:
        self.tokenizer = tokenizer
        self.conversations = conversations
        self.rng = random.Random(seed)  # noqa: S311 (it must be reproducible, not secret)
        self.ids = token_ids(tokenizer)
        pages, docstrings = read_documents()
        self.pages = [[self._encode(f"{paragraph}\n\n") for paragraph in page] for page in pages]
        self.docstrings = [self._encode(text) for text in docstrings]
        self._order: list[tuple[str, int]] = []

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    @property
    def page_tokens(self) -> int:
        return sum(len(paragraph) for page in self.pages for paragraph in page)

    @property
    def docstring_tokens(self) -> int:
        return sum(map(len, self.docstrings))

    def _document(self, limit: int) -> list[int]:
        """The next document, cut to the limit. A page may begin at any of its paragraphs."""
        if not self._order:
            # One pass: every docstring once, and as many pieces of the pages as cover them about twice.
            pieces = [max(1, 2 * sum(map(len, page)) // limit) for page in self.pages]
            self._order = [("docstring", i) for i in range(len(self.docstrings))]
            self._order += [("page", i) for i, count in enumerate(pieces) for _ in range(count)]
            self.rng.shuffle(self._order)
        kind, index = self._order.pop()
        if kind == "docstring":
            body = self.docstrings[index]
        else:
            page = self.pages[index]
            start = 0 if self.rng.random() < 0.15 else self.rng.randrange(len(page))
            body = []
            for paragraph in page[start:]:
                body = body + paragraph
                if len(body) > limit:
                    break
        return [self.ids[BEGIN], *body, self.ids[END]][:limit]

    def _conversation(self, limit: int) -> list[int]:
        sample = [self.ids[BEGIN]]
        for role, text in self.conversations.draw(self.rng):
            sample += [self.ids[role], *self._encode(text), self.ids[END]]
        return sample[:limit]

    def batch(self, rows: int, length: int, chat_share: float) -> Batch:
        """The next batch: some of its rows hold conversations, the others documents."""
        tokens = torch.full((rows, length), self.ids[PAD])
        labels = torch.full((rows, length), -100)
        positions = torch.zeros((rows, length), dtype=torch.long)
        owner = torch.zeros((rows, length), dtype=torch.long)
        for row in range(rows):
            draw = self._conversation if self.rng.random() < chat_share else self._document
            filled, number = 0, 0
            while length - filled >= 8:
                sample = torch.tensor(draw(length - filled))
                here = slice(filled, filled + len(sample))
                tokens[row, here] = sample
                labels[row, here] = sample
                labels[row, filled] = -100
                positions[row, here] = torch.arange(len(sample))
                owner[row, here] = number
                filled, number = filled + len(sample), number + 1
            owner[row, filled:] = number
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        mask = (owner[:, :, None] == owner[:, None, :]) & causal
        return Batch(tokens, positions, labels, mask[:, None])


# ------------------------------------------------------------------------------------------------------- training


def new_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """The untrained model: about 3.5 million parameters."""
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BEGIN),
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    return LlamaForCausalLM(config)


def learning_rate(step: int, progress: float) -> float:
    """A short warm-up, then half a cosine over the whole training."""
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    return (FINAL_LEARNING_RATE + (PEAK_LEARNING_RATE - FINAL_LEARNING_RATE) * cosine) * min(
        1.0, (step + 1) / WARM_UP_STEPS
    )


def train(model: LlamaForCausalLM, samples: Samples, steps: int, minutes: float) -> tuple[int, float]:
    """Train the model; the number of steps done, and the mean loss of the last hundred of them."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), fused=True)
    model.train()
    started = shown = time.monotonic()
    losses: list[float] = []
    progress, step = 0.0, 0
    while progress < 1.0:
        length = ROW_LENGTH if progress < LONG_ROWS_FROM else LONG_ROW_LENGTH
        share = CHAT_SHARE[0] + (CHAT_SHARE[1] - CHAT_SHARE[0]) * progress
        batch = samples.batch(TOKENS_PER_STEP // length, length, share)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, progress)
        hidden = model(
            input_ids=batch.tokens, position_ids=batch.positions, attention_mask=batch.mask, use_cache=False
        ).logits
        loss = torch.nn.functional.cross_entropy(
            hidden[:, :-1].reshape(-1, hidden.shape[-1]), batch.labels[:, 1:].reshape(-1), ignore_index=-100
        )
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses = [*losses[-99:], loss.item()]
        step += 1
        now = time.monotonic()
        progress = step / steps
        if minutes > 0:
            progress = max(progress, (now - started) / (60.0 * minutes))
        if now - shown > 15.0 or progress >= 1.0:
            shown = now
            rate = step * TOKENS_PER_STEP / (now - started)
            mean = sum(losses) / len(losses)
            print(f"step {step}/{steps}  {progress:4.0%}  loss {mean:.3f}  {rate:.0f} tokens/s", flush=True)
    return step, sum(losses) / len(losses)


# --------------------------------------------------------------------------------------------------------- output


def save(folder: Path, model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    """Write the Hugging Face folder."""
    ids = token_ids(tokenizer)
    model = model.to(torch.bfloat16)  # type: ignore[arg-type, unused-ignore]
    model.generation_config = GenerationConfig(bos_token_id=ids[BEGIN], eos_token_id=ids[END], pad_token_id=ids[PAD])
    model.save_pretrained(folder)
    # The names that readers other than the newest transformers look for.
    config_path = folder / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    config.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
    config.setdefault("torch_dtype", "bfloat16")
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(str(folder))
    settings_path = folder / "tokenizer_config.json"
    settings = json.loads(settings_path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    for path in folder.iterdir():
        path.chmod(0o644)
    settings_path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_card(folder: Path, facts: dict[str, str]) -> None:
    """Write README.md: what this model is and how it came to be."""
    lines = [
        "# Trident's demo model",
        "",
        "A very small Llama which answers short questions about Python, and otherwise writes something that resembles",
        "its documentation. It exists so that a fresh installation has something to serve; it knows next to nothing.",
        "Made by `tools/demo/train.py`, which also says how to make it again. The text that it was trained on is the",
        "documentation that comes with CPython (copyright Python Software Foundation, PSF license, version 2).",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in facts.items()),
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def replace_folder(new: Path, output: Path) -> None:
    """Put the new folder in the place of the old one, which is removed only when the new one is there."""
    old = new.with_name(new.name + ".old")
    if output.exists():
        output.rename(old)
    try:
        new.rename(output)
    except BaseException:
        if old.exists():
            old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def show_samples(folder: Path) -> None:
    """Load the folder as anybody would, and print what the model says."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def continued(prompt: str) -> str:
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=not prompt.startswith(BEGIN))
        output = model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=80, do_sample=False
        )
        return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    for question in SAMPLE_QUESTIONS:
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        print(f"> {question}\n{continued(prompt)}\n")
    for prompt in SAMPLE_PROMPTS:
        print(f"[{prompt}]{continued(prompt)}\n")


def parse_arguments() -> argparse.Namespace:
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Train Trident's demo checkpoint.")
    parser.add_argument("--output", type=Path, default=here / "checkpoint", help="the folder to write or replace")
    parser.add_argument(
        "--steps", type=int, default=3000, help=f"steps of {TOKENS_PER_STEP} tokens (default: %(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=0.0, help="finish in this time, with fewer steps if need be")
    parser.add_argument("--seed", type=int, default=1, help="where all random choices start (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.steps < 1 or arguments.threads < 1 or arguments.minutes < 0:
        parser.error("--steps and --threads must be at least 1, and --minutes must not be negative")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    torch.use_deterministic_algorithms(True)
    conversations = Conversations.read(Path(__file__).resolve().with_name("conversations.json"))
    pages, docstrings = read_documents()
    texts = ["\n\n".join(page) for page in pages] + docstrings
    tokenizer = train_tokenizer(iter([*texts, *list(conversations.all_text()) * 3]))
    samples = Samples(tokenizer, conversations, arguments.seed)
    facts = len(conversations.concepts) + len(conversations.core) + len(conversations.library)
    print(f"{samples.page_tokens} tokens of reference, {samples.docstring_tokens} of docstrings, {facts} facts")
    model = new_model(tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters, {arguments.threads} threads", flush=True)
    started = time.monotonic()
    steps, loss = train(model, samples, arguments.steps, arguments.minutes)
    elapsed = (time.monotonic() - started) / 60.0

    output: Path = arguments.output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch:
        folder = Path(scratch, output.name)
        folder.mkdir()
        save(folder, model, tokenizer)
        write_card(
            folder,
            {
                "parameters": f"{parameters}",
                "documentation": f"CPython {platform.python_version()}, {platform.system()}",
                "text": f"{samples.page_tokens + samples.docstring_tokens} tokens, and {facts} facts to ask about",
                "training": f"{steps} steps of {TOKENS_PER_STEP} tokens, {elapsed:.0f} minutes",
                "seed and threads": f"{arguments.seed}, {arguments.threads}",
                "loss": f"{loss:.3f}",
                "torch": torch.__version__,
            },
        )
        replace_folder(folder, output)
    size = sum(path.stat().st_size for path in output.iterdir())
    print(f"{output}: {size} bytes, loss {loss:.3f} after {steps} steps, {elapsed:.1f} minutes\n", flush=True)
    show_samples(output)


def main() -> int:
    """The command line."""
    with contextlib.suppress(BrokenPipeError):
        try:
            run(parse_arguments())
        except KeyboardInterrupt:
            print("\ninterrupted; nothing was written", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
