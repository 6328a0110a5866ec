"""EBNF grammars rewritten in llguidance's language.

Owns the translation, which keeps the language character by character: llguidance's lexer is greedy, so that
`[a-z]* "b"` would never end there. A grammar without recursion becomes one terminal; a grammar with recursion gets
terminals of one character each. Never knows a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from trident_backend.guided.ebnf_parser import (
    Alternatives,
    CharacterClass,
    Concatenation,
    EbnfError,
    Literal,
    Node,
    Reference,
    Repetition,
    parse_rules,
)


def escaped(text: str) -> str:
    """Return a regular expression that matches exactly this text.

    Raises:
        UnicodeEncodeError: the text has half of a surrogate pair.
    """
    text.encode()
    return "".join(c if c.isalnum() and c.isascii() else f"\\x{{{ord(c):x}}}" for c in text)


def lark_rules(text: str) -> str:
    """Translate a grammar; return its rules in llguidance's language.

    Raises:
        EbnfError: the text is not a grammar, or is too large.
    """
    rules = parse_rules(text)
    if _ROOT not in rules:
        raise EbnfError(f"there is no rule named {_ROOT}, where the text begins")
    used = _used(rules)
    if len(used) > _MAX_RULES:
        raise EbnfError(f"{len(used)} rules are too many: at most {_MAX_RULES}")
    closed = _closed(rules, used)
    is_regular = len(closed) == len(used)
    if is_regular and _written_out(rules, closed) > _MAX_SIZE:
        raise EbnfError(f"too large with every rule written out: at most {_MAX_SIZE} parts")
    if not is_regular and (size := sum(_size(rules[name], {}) for name in used)) > _MAX_RECURSIVE_SIZE:
        raise EbnfError(f"{size} parts are too many where rules refer to themselves: at most {_MAX_RECURSIVE_SIZE}")
    numbers = {name: number for number, name in enumerate(used)}
    prefix = "T" if is_regular else "r"
    lines = [f"start: {prefix}{numbers[_ROOT]}"]
    for name in used:
        lines.append(f"{prefix}{numbers[name]}: {_lark(rules[name], numbers, is_regular)}")
    return "\n".join(lines)


def _lark(node: Node, numbers: dict[str, int], is_regular: bool) -> str:
    if isinstance(node, Literal):
        characters = [escaped(node.text)] if is_regular else [escaped(character) for character in node.text]
        return " ".join(f"/{pattern}/" for pattern in characters if pattern) or '""'
    if isinstance(node, CharacterClass):
        return f"/{node.pattern}/"
    if isinstance(node, Reference):
        return f"{'T' if is_regular else 'r'}{numbers[node.name]}"
    if isinstance(node, Repetition):
        return f"({_lark(node.node, numbers, is_regular)}){node.bounds}"
    parts = node.parts if isinstance(node, Concatenation) else node.options
    joined = (" " if isinstance(node, Concatenation) else " | ").join(
        _lark(part, numbers, is_regular) for part in parts
    )
    return f"({joined})" if joined else '""'


def _references(node: Node) -> Iterator[str]:
    if isinstance(node, Reference):
        yield node.name
    elif isinstance(node, Repetition):
        yield from _references(node.node)
    elif isinstance(node, Concatenation | Alternatives):
        for part in node.parts if isinstance(node, Concatenation) else node.options:
            yield from _references(part)


def _used(rules: dict[str, Node]) -> list[str]:
    """Return the names of the rules that the root needs, in the order in which they are met."""
    used = {_ROOT: None}
    pending = [_ROOT]
    while pending:
        for name in _references(rules[pending.pop()]):
            if name not in rules:
                raise EbnfError(f"there is no rule named {name}")
            if name not in used:
                used[name] = None
                pending.append(name)
    return list(used)


def _closed(rules: dict[str, Node], used: list[str]) -> list[str]:
    """Return the rules that never refer back to themselves, each after all rules that it refers to."""
    missing = {name: set(_references(rules[name])) for name in used}
    users: dict[str, list[str]] = {name: [] for name in used}
    for name, references in missing.items():
        for reference in references:
            users[reference].append(name)
    closed = [name for name in used if not missing[name]]
    for name in closed:
        for user in users[name]:
            missing[user].discard(name)
            if not missing[user]:
                closed.append(user)
    return closed


def _written_out(rules: dict[str, Node], closed: list[str]) -> int:
    """Count the parts of the last of these rules with every reference written out, up to just above the bound."""
    sizes: dict[str, int] = {}
    for name in closed:
        sizes[name] = min(_size(rules[name], sizes), _MAX_SIZE + 1)
    return sizes[closed[-1]]


def _size(node: Node, sizes: Mapping[str, int]) -> int:
    """Count the parts of a node; a reference counts as `sizes` says, or as one."""
    if isinstance(node, Reference):
        return sizes.get(node.name, 1)
    if isinstance(node, Repetition):
        return (1 if len(node.bounds) == 1 else _BOUNDED_SIZE) + _size(node.node, sizes)
    if isinstance(node, Concatenation | Alternatives):
        return 1 + sum(_size(part, sizes) for part in (node.parts if isinstance(node, Concatenation) else node.options))
    return 1


_ROOT = "root"
_MAX_RULES = 1000
#: Parts of a grammar without recursion, with every rule written out.
_MAX_SIZE = 50_000
#: Parts of a grammar with recursion, all of which may be open at one position.
_MAX_RECURSIVE_SIZE = 1000
#: How many parts a repetition with bounds counts as, because the parser writes it out.
_BOUNDED_SIZE = 10
