"""What can be asked about Python: names, and what docstrings say of them in a sentence or two.

Owns the choice of what is asked about and the wording of answers. Never draws at random.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass

from demo.documents import own_doc, plain, public_members

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
    """Return whole sentences from the beginning of a docstring's first paragraph; empty where it has none."""
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
    """Return the first sentences of a docstring as a statement about the thing with that name."""
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
    """Return what the docstring of a thing says about it, if that can be said in a sentence or two."""
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
    """Return the kind of templates that ask about a public member of a module; empty for constants and submodules."""
    if inspect.isclass(value):
        return "exception" if issubclass(value, BaseException) else "class"
    return "function" if callable(value) else ""


def read_facts(concepts: Sequence[Fact]) -> tuple[list[Fact], list[Fact]]:
    """Return what can be asked about builtins, and about the rest of the standard library."""
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
