"""Every kind of guide, written as one grammar in llguidance's language, a dialect of Lark.

Owns the kinds of guides, their bounds, and the wrappers that OpenAI's APIs put around JSON schemas. Never compiles
anything, and never passes a client's text on unchanged, except for a regular expression: a grammar in that language
could ask for special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llguidance import regex_to_lark

from trident_backend.guided import ebnf
from trident_backend.guided.added_tokens import AddedTokens
from trident_backend.guided.ebnf_parser import EbnfError
from trident_backend.guided.json_schemas import CheckedSchema, SchemaError
from trident_backend.guided.schema_paths import ROOT, SchemaPath
from trident_backend.guided.tag_formats import TagFormatError, parse_structural_tag
from trident_backend.guided.tag_grammar import ASCII, write_tags
from trident_ensemble.contract import tensors
from trident_ensemble.contract.client_input import MAX_GUIDE_BYTES, check_size
from trident_ensemble.contract.errors import InvalidGuideError, RequestError


@dataclass(frozen=True)
class LarkGrammar:
    """A guide in llguidance's language; `str` gives the whole grammar.

    Args:
        text: the grammar without its preamble.
        schemas: the JSON schemas in it.
        markers: indices in the vocabulary's `texts` of the added tokens that it asks for by id.
    """

    text: str
    schemas: tuple[CheckedSchema, ...] = ()
    markers: frozenset[int] = frozenset()

    def __str__(self) -> str:
        return _PREAMBLE + self.text

    def located(self, problem: str, problem_with: Callable[[LarkGrammar], str]) -> str:
        """Return llguidance's message about this grammar, with a path into the schema if there is one.

        Args:
            problem: the message.
            problem_with: returns the message about another grammar; empty if there is none.
        """
        for schema in self.schemas:
            own = problem if len(self.schemas) == 1 else problem_with(_of_schema(schema.text()))
            if own and _SCHEMA_PROBLEM in problem:
                path, own = schema.located(own, lambda text: problem_with(_of_schema(text)))
                return f"{path}: {own.removeprefix(_SCHEMA_PROBLEM)}"
        return problem


def lark_grammar(guide_type: str, guide: str, added: AddedTokens | None = None) -> LarkGrammar:
    """Write the grammar of a guide.

    Args:
        guide_type: `json`, `json_schema`, `regex`, `choice`, `ebnf_grammar` or `structural_tag`.
        guide: the schema, the expression, the JSON list of choices, the grammar or the tag; with `json`, a schema or an
            empty text.
        added: the tokens that a structural tag may ask for by id.

    Raises:
        RequestError: names what is wrong. Some problems, such as an unknown keyword, are only found by llguidance.
    """
    if guide_type not in {*_GRAMMARS, _TAG}:
        known = ", ".join([*_GRAMMARS, _TAG])
        raise RequestError(tensors.GUIDE_TYPE.name, f"{guide_type[:64]!r} is not one of the known types: {known}")
    num_bytes = len(guide.encode(errors="surrogatepass"))
    check_size(tensors.GUIDE.name, num_bytes, MAX_GUIDE_BYTES if guide_type == _TAG else _MAX_BYTES)
    if guide_type == "json" and not guide.strip():
        return _ANY_JSON
    if not guide:
        raise bad_guide(f"is missing or empty; {guide_type} needs one")
    return _structural_tag(guide, added or AddedTokens()) if guide_type == _TAG else _GRAMMARS[guide_type](guide)


def bad_guide(problem: str) -> InvalidGuideError:
    """Return the error for a guide that cannot be followed."""
    return InvalidGuideError(tensors.GUIDE.name, problem)


def _json_schema(guide: str) -> LarkGrammar:
    try:
        schema, path = unwrapped(_parse(guide))
        if schema is False:
            raise bad_guide(f"{path}: false allows no output")
        if schema is True:
            schema = {}
        if not isinstance(schema, dict):
            raise bad_guide("a JSON schema must be an object")
        checked = CheckedSchema(schema, path)
    except (SchemaError, ResponseFormatError) as error:
        raise bad_guide(str(error)) from None
    return _of_schema(checked.text(), checked)


def _of_schema(text: str, schema: CheckedSchema | None = None) -> LarkGrammar:
    return LarkGrammar(f"start: %json {text}", () if schema is None else (schema,))


def _regex(guide: str) -> LarkGrammar:
    if (len(guide) - len(guide.rstrip("\\"))) % 2:
        raise bad_guide("ends in a single backslash")
    try:
        guide.encode()
    except UnicodeEncodeError as error:
        raise bad_guide(f"is not valid text: {error.reason} at character {error.start}") from None
    return LarkGrammar(f"start: /{regex_to_lark(guide, ASCII)}/")


def _choice(guide: str) -> LarkGrammar:
    choices = _parse(guide)
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise bad_guide("choices must be a JSON list of at least one string")
    try:
        return LarkGrammar(f"start: /{'|'.join(ebnf.escaped(choice) for choice in choices)}/")
    except UnicodeEncodeError as error:
        raise bad_guide(f"a choice is not valid text: {error.reason}") from None


def _ebnf(guide: str) -> LarkGrammar:
    try:
        return LarkGrammar(ebnf.lark_rules(guide))
    except EbnfError as error:
        raise bad_guide(str(error)) from None


def _structural_tag(guide: str, added: AddedTokens) -> LarkGrammar:
    try:
        grammar = write_tags(parse_structural_tag(_parse(guide)), added)
    except TagFormatError as error:
        raise bad_guide(str(error)) from None
    return LarkGrammar(grammar.rules, grammar.schemas, grammar.markers)


def _parse(guide: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not valid JSON")

    def exact(digits: str) -> int:
        if abs(int(digits)) > _MAX_INTEGER:
            raise bad_guide(f"{digits[:32]} is too large: integers are exact to {_MAX_INTEGER}")
        return int(digits)

    try:
        return json.loads(guide, parse_constant=refuse, parse_int=exact)
    except RecursionError:
        raise bad_guide("is nested too deeply") from None
    except ValueError as error:
        raise bad_guide(f"is not valid JSON: {error}") from None


class ResponseFormatError(Exception):
    """A wrapper without a schema; the message says what is missing."""


def unwrapped(value: Any) -> tuple[Any, SchemaPath]:
    """Take a schema out of the wrapper in which OpenAI's APIs send it; return the schema and its path in the value.

    Known wrappers are `{"name": ..., "strict": ..., "schema": {...}}` and `{"type": "json_schema", "json_schema":
    {...}}`, which holds one of the former. Any other value is taken for the schema itself. `strict` changes nothing,
    because every schema is followed strictly.

    Raises:
        ResponseFormatError: the value is a wrapper without a schema.
    """
    path = ROOT
    if isinstance(value, dict) and value.get("type") == _TYPE and value.keys() <= {"type", _TYPE}:
        value, path = value.get(_TYPE), path / _TYPE
        if not _is_named(value):
            raise ResponseFormatError(f'{path}: must be an object with a schema, {{"name": ..., "schema": {{...}}}}')
    if not _is_named(value):
        return value, path
    path /= "schema"
    if not isinstance(value["schema"], dict | bool):
        raise ResponseFormatError(f"{path}: must be a JSON schema, which is an object")
    return value["schema"], path


def _is_named(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and "schema" in value
        and value.keys() <= _NAMED
        and value.get("type", _TYPE) == _TYPE
        and all(isinstance(value.get(name), str | None) for name in ("name", "description"))
        and isinstance(value.get("strict"), bool | None)
    )


#: `json_schema` of a chat completion's `response_format`; with `type`, the `text.format` of a response.
_NAMED = frozenset({"name", "description", "schema", "strict", "type"})
_TYPE = "json_schema"
#: Without forced tokens, a mask allows exactly the tokens whose bytes may come next.
_PREAMBLE = '%llguidance {"no_forcing": true}\n'
#: Bytes of a guide of any type but `structural_tag`, which holds the schemas of many tools.
_MAX_BYTES = 1 << 16
_TAG = "structural_tag"

#: llguidance keeps numbers as doubles.
_MAX_INTEGER = 1 << 53
_GRAMMARS = {
    "json": _json_schema,
    "json_schema": _json_schema,
    "regex": _regex,
    "choice": _choice,
    "ebnf_grammar": _ebnf,
}
_SCHEMA_PROBLEM = "failed to compile JSON schema: "
_ANY_JSON = _json_schema('{"type": ["object", "array"]}')
