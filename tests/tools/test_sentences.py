"""Docstrings read like English: the first line of each is a whole sentence, and a module says what it owns.

The check is mechanical, so it can only refuse what is never a sentence: fragments, cross-references and words that were
left without an end.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "backend/trident_backend",
    "ensemble/trident_ensemble",
    "postprocessing/trident_postprocessing",
    "preprocessing/trident_preprocessing",
    "tools/demo",
    "tools/trident_compiler",
    "tools/trident_gateway",
    "tools/trident_tools",
)
MIN_WORDS = 3
#: How a fragment, a riddle or a cross-reference begins.
_FRAGMENT = re.compile(
    r"(See|As|At|Beyond|By|Each in|For|From|How|If|In|Its|It is|Not|Of|On|Several of|So many|So much|Such|Takes|That|"
    r"The same|Their|Those|Together|To be|What|When|Where|Whether in|Which|Who|Whoever|Whose|Why|With|Within|Without)\b"
)
#: How a value is named. A function does something, which an imperative says.
_VALUE = re.compile(r"(A|All|An|Each|Every|Nobody|Nothing|One|Some|The|There)\b")
#: What a property may begin with: it is a value, named by a clause.
_VALUE_CLAUSE = re.compile(r"(How|Whether|Which|When|Where|Why|What)\b")


def _rooms() -> list[str]:
    """Return every folder of modules, that of each package's root among them."""
    rooms: list[str] = []
    for package in PACKAGES:
        rooms.append(package)
        rooms += sorted(
            {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob("*.py")} - {package}
        )
    return rooms


def problems(source: str) -> Iterator[str]:
    """Yield what is wrong with the docstrings of a module, each with its line."""
    tree = ast.parse(source)
    header = ast.get_docstring(tree)
    if header is None:
        yield "1: the module has no docstring"
    elif len(tree.body) > 1:
        words = header.split()
        if "Owns" not in words:
            yield "1: the module's docstring does not say what it owns"
        if "Never" not in words and "never" not in words:
            yield "1: the module's docstring does not say what it never does"
        yield from _problems_of(header, 1, is_value=True)
    yield from _of_members(tree)


def _of_members(owner: ast.Module | ast.ClassDef) -> Iterator[str]:
    for node in owner.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
            continue
        text = ast.get_docstring(node)
        if text is not None:
            is_property = isinstance(node, ast.FunctionDef) and any(
                isinstance(decorator, ast.Name) and decorator.id.endswith("property")
                for decorator in node.decorator_list
            )
            yield from _problems_of(text, node.lineno, is_value=is_property)
            if (is_property or isinstance(node, ast.ClassDef)) and text.startswith("Return "):
                yield f"{node.lineno}: does not name the value: {text.partition(chr(10))[0]!r}"
            if isinstance(node, ast.FunctionDef) and not is_property and _VALUE.match(text):
                yield f"{node.lineno}: does not say what the function does: {text.partition(chr(10))[0]!r}"
        if isinstance(node, ast.ClassDef):
            yield from _of_members(node)


def _problems_of(text: str, line: int, *, is_value: bool) -> Iterator[str]:
    first = text.partition("\n\n")[0].replace("\n", " ").strip()
    if _FRAGMENT.match(first) and not (is_value and _VALUE_CLAUSE.match(first)):
        yield f"{line}: is a fragment: {first!r}"
    elif not first.endswith((".", ":")):
        yield f"{line}: has no end: {first!r}"
    elif len(first.split()) < MIN_WORDS and not is_value:
        yield f"{line}: is too short to say anything: {first!r}"


def _found(room: str) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{problem}"
        for path in sorted((ROOT / room).glob("*.py"))
        for problem in problems(path.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize("room", _rooms())
def test_sentences_are_whole(room: str) -> None:
    found = _found(room)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("import x", "1: the module has no docstring"),
        ('"""A module. Owns x."""\nimport x', "1: the module's docstring does not say what it never does"),
        ('"""A module. Never x."""\nimport x', "1: the module's docstring does not say what it owns"),
        ('"""Owns x, never y"""\nimport x', "1: has no end"),
        ('def f():\n    """See `g`."""', "2: is a fragment"),
        ('class C:\n    def f(self):\n        """Of one step."""', "3: is a fragment"),
        ('class C:\n    """What is asked."""', "2: is a fragment"),
        ('def f():\n    """Whoever asks for it gets it."""', "2: is a fragment"),
        ('def f():\n    """Text."""', "2: is too short"),
        ('class C:\n    """Return a sum."""', "2: does not name the value"),
        ('def f():\n    """A truth value of a request."""', "2: does not say what the function does"),
    ],
)
def test_sentences_that_are_none_are_found(source: str, problem: str) -> None:
    header = "" if source.startswith(('"""', "import")) else '"""A module. Owns it. Never prints."""\n'
    assert [found[: len(problem)] for found in problems(header + source)] == [problem]


def test_sentences_that_are_whole_pass() -> None:
    source = '''"""A module.

Owns a sum. Never prints.
"""

import x

class Sum:
    """The sum of some numbers."""

    @property
    def is_large(self) -> bool:
        """Whether the sum is above 10."""
'''
    assert not list(problems(source))
