"""The documents that the demo model reads: what every CPython carries.

Owns the reading of the language reference and of docstrings, and their cleaning to plain ASCII. Never tokenizes.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics as pydoc_topics
from typing import Any

# Folders of the standard library which hold no documentation worth reading.
SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__", "distutils", "encodings", "ensurepip", "idlelib", "lib-dynload", "lib2to3", "msilib",
        "pydoc_data", "site-packages", "test", "tests", "turtledemo", "_pyrepl",
    }
)  # fmt: skip

# Quotes, dashes, the ellipsis and the tabulator, by their code points.
ASCII_MARKS = {
    0x201C: '"', 0x201D: '"', 0x2018: "'", 0x2019: "'", 0x2014: "--", 0x2013: "-", 0x2026: "...", 0x09: "    ",
}  # fmt: skip


def plain(text: str) -> str:
    """Return the text with ASCII quotes and dashes for typographic ones, and without emphasis marks."""
    text = text.translate(ASCII_MARKS)
    text = re.sub(r":[\w:]+:`~?([^`<]+)`", r"\1", text)
    text = text.replace("``", "`")
    text = re.sub(r"(?<![\w*])\*\*?([A-Za-z_][^*\n]{0,40}?)\*\*?(?![\w*])", r"\1", text)
    return "\n".join(line.rstrip() for line in text.split("\n")).strip()


def topic_paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a page of the language reference, without titles, grammar and cross references."""
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
    """Yield the qualified name and the docstring of everything written in Python, in the order of the file names."""
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
    """Yield the qualified name and the docstring of everything in the modules which are written in C."""
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
    """Return the public names of a module or class with their values, sorted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = getattr(owner, "__all__", None) if inspect.ismodule(owner) else None
        names = sorted(set(exported or dir(owner)))
        members = [(name, getattr(owner, name, None)) for name in names if not name.startswith("_")]
    return [(name, value) for name, value in members if value is not None]


def own_doc(value: object) -> str:
    """Return the docstring of a class, a function or a module; empty for an instance, which has its type's."""
    if not (
        inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value) or inspect.isdatadescriptor(value)
    ):
        return ""
    doc = inspect.getdoc(value)
    return doc if isinstance(doc, str) else ""


def read_documents() -> tuple[list[list[str]], list[str]]:
    """Return the pages of the language reference, as lists of paragraphs, and the docstrings, each below its name."""
    pages = [topic_paragraphs(pydoc_topics.topics[key]) for key in sorted(pydoc_topics.topics)]
    seen: set[str] = set()
    docstrings: list[str] = []
    for name, doc in [*compiled_docstrings(), *source_docstrings()]:
        text = plain(doc)
        if len(text) >= 40 and text not in seen:
            seen.add(text)
            docstrings.append(f"{name}\n\n{text}")
    return [page for page in pages if page], docstrings
