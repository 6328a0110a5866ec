"""What a client may ask for, written as one grammar of llguidance's language (a dialect of Lark).

Owns the kinds of guides and their bounds. Never compiles anything, and hands no text of a client on as it is but a
regular expression: a grammar of that language could ask for special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llguidance import regex_to_lark

from trident_backend.guided import ebnf
from trident_backend.guided.json_schemas import CheckedSchema, SchemaError
from trident_backend.guided.response_formats import ResponseFormatError, unwrapped
from trident_ensemble.contract import tensors
from trident_ensemble.contract.errors import RequestError


@dataclass(frozen=True)
class LarkGrammar:
    """A guide as llguidance takes it.

    Args:
        text: the grammar, without its preamble.
        schema: what it was made of, if it was a JSON schema.
    """

    text: str
    schema: CheckedSchema | None = None

    def __str__(self) -> str:
        return _PREAMBLE + self.text

    def located(self, problem: str, problem_with: Callable[[LarkGrammar], str]) -> str:
        """Return what llguidance says of this grammar, with its place in the schema if there is one.

        Args:
            problem: what it says.
            problem_with: what it says of another grammar; empty if nothing.
        """
        if self.schema is None:
            return problem
        place, problem = self.schema.located(problem, lambda text: problem_with(_of_schema(text)))
        return f"{place}: {problem.removeprefix(_SCHEMA_PROBLEM)}"


def lark_grammar(guide_type: str, guide: str) -> LarkGrammar:
    """Write the grammar of a guide.

    Args:
        guide_type: `json`, `json_schema`, `regex`, `choice` or `ebnf_grammar`.
        guide: the schema, expression, JSON list of choices, or grammar; of `json` a schema or nothing.

    Raises:
        RequestError: naming what is wrong. What only llguidance can find (an unknown keyword, say) is not found here.
    """
    if guide_type not in _GRAMMARS:
        known = ", ".join(_GRAMMARS)
        raise RequestError(tensors.GUIDE_TYPE.name, f"{guide_type[:64]!r} is not among those that are known: {known}")
    num_bytes = len(guide.encode(errors="surrogatepass"))
    if num_bytes > MAX_GUIDE_BYTES:
        raise bad_guide(f"{num_bytes} bytes are too many: at most {MAX_GUIDE_BYTES}")
    if guide_type == "json" and not guide.strip():
        return _ANY_JSON
    if not guide:
        raise bad_guide(f"is missing or empty; {guide_type} needs one")
    return _GRAMMARS[guide_type](guide)


def bad_guide(problem: str) -> RequestError:
    """The error of a guide that cannot be followed."""
    return RequestError(tensors.GUIDE.name, problem)


def _json_schema(guide: str) -> LarkGrammar:
    try:
        schema, place = unwrapped(_parse(guide))
        if schema is False:
            raise bad_guide(f"{place}: false allows no output")
        if schema is True:
            schema = {}
        if not isinstance(schema, dict):
            raise bad_guide("a JSON schema must be an object")
        checked = CheckedSchema(schema, place)
    except (SchemaError, ResponseFormatError) as error:
        raise bad_guide(str(error)) from None
    return _of_schema(checked.text(), checked)


def _of_schema(text: str, schema: CheckedSchema | None = None) -> LarkGrammar:
    return LarkGrammar(f"start: %json {text}", schema)


def _regex(guide: str) -> LarkGrammar:
    if (len(guide) - len(guide.rstrip("\\"))) % 2:
        raise bad_guide("ends in a single backslash")
    try:
        guide.encode()
    except UnicodeEncodeError as error:
        raise bad_guide(f"is no text: {error.reason} at character {error.start}") from None
    return LarkGrammar(f"start: /{regex_to_lark(guide, _ASCII)}/")


def _choice(guide: str) -> LarkGrammar:
    choices = _parse(guide)
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise bad_guide("choices must be a JSON list of at least one string")
    try:
        return LarkGrammar(f"start: /{'|'.join(ebnf.escaped(choice) for choice in choices)}/")
    except UnicodeEncodeError as error:
        raise bad_guide(f"a choice is no text: {error.reason}") from None


def _ebnf(guide: str) -> LarkGrammar:
    try:
        return LarkGrammar(ebnf.lark_rules(guide))
    except ebnf.EbnfError as error:
        raise bad_guide(str(error)) from None


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


#: Without forced tokens the mask is exactly the tokens whose bytes may come next.
_PREAMBLE = '%llguidance {"no_forcing": true}\n'
#: \d, \w and \s mean ASCII, as in JSON schemas.
_ASCII = "dws"
MAX_GUIDE_BYTES = 64 << 10
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
