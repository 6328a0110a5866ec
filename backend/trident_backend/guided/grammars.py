"""What a client may ask for, written as one grammar of llguidance's language (a dialect of Lark).

Owns the kinds of guides and their bounds. Never compiles anything, and hands no text of a client on as it is but a
regular expression: a grammar of that language could ask for special tokens.
"""

from __future__ import annotations

import json
from typing import Any

from llguidance import regex_to_lark

from trident_backend.guided import ebnf
from trident_backend.guided.schemas import SchemaError, checked_schema
from trident_ensemble import tensors
from trident_ensemble.errors import RequestError


def lark_grammar(guide_type: str, guide: str) -> str:
    """The grammar of a guide.

    Args:
        guide_type: `json`, `json_schema`, `regex`, `choice` or `ebnf_grammar`.
        guide: the schema, expression, JSON list of choices, or grammar; of `json` empty or anything.

    Raises:
        RequestError: naming what is wrong. What only llguidance can find (an unknown keyword, say) is not found here.
    """
    if guide_type not in _GRAMMARS:
        known = ", ".join(_GRAMMARS)
        raise RequestError(tensors.GUIDE_TYPE.name, f"{guide_type[:64]!r} is not among those that are known: {known}")
    num_bytes = len(guide.encode(errors="surrogatepass"))
    if num_bytes > MAX_GUIDE_BYTES:
        raise bad_guide(f"{num_bytes} bytes are too many: at most {MAX_GUIDE_BYTES}")
    if guide_type != "json" and not guide:
        raise bad_guide(f"is missing or empty; {guide_type} needs one")
    return _PREAMBLE + _GRAMMARS[guide_type](guide)


def bad_guide(problem: str) -> RequestError:
    """The error of a guide that cannot be followed."""
    return RequestError(tensors.GUIDE.name, problem)


def _any_json(_guide: str) -> str:
    return _json_schema('{"type": ["object", "array"]}')


def _json_schema(guide: str) -> str:
    schema = _parse(guide)
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise bad_guide("a JSON schema must be an object")
    try:
        return f"start: %json {checked_schema(schema)}"
    except SchemaError as error:
        raise bad_guide(str(error)) from None


def _regex(guide: str) -> str:
    if (len(guide) - len(guide.rstrip("\\"))) % 2:
        raise bad_guide("ends in a single backslash")
    try:
        guide.encode()
    except UnicodeEncodeError as error:
        raise bad_guide(f"is no text: {error.reason} at character {error.start}") from None
    return f"start: /{regex_to_lark(guide, _ASCII)}/"


def _choice(guide: str) -> str:
    choices = _parse(guide)
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise bad_guide("choices must be a JSON list of at least one string")
    try:
        return f"start: /{'|'.join(ebnf.escaped(choice) for choice in choices)}/"
    except UnicodeEncodeError as error:
        raise bad_guide(f"a choice is no text: {error.reason}") from None


def _ebnf(guide: str) -> str:
    try:
        return ebnf.lark_rules(guide)
    except ebnf.EbnfError as error:
        raise bad_guide(str(error)) from None


def _parse(guide: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    def exact(digits: str) -> int:
        if abs(int(digits)) > _MAX_INTEGER:
            raise bad_guide(f"{digits[:32]} is too large: integers are exact to {_MAX_INTEGER}")
        return int(digits)

    try:
        return json.loads(guide, parse_constant=refuse, parse_int=exact)
    except RecursionError:
        raise bad_guide("is nested too deeply") from None
    except ValueError as error:
        raise bad_guide(f"is no JSON: {error}") from None


#: Without forced tokens the mask is exactly the tokens whose bytes may come next.
_PREAMBLE = '%llguidance {"no_forcing": true}\n'
#: \d, \w and \s mean ASCII, as in JSON schemas.
_ASCII = "dws"
MAX_GUIDE_BYTES = 64 << 10
#: llguidance keeps numbers as doubles.
_MAX_INTEGER = 1 << 53
_GRAMMARS = {
    "json": _any_json,
    "json_schema": _json_schema,
    "regex": _regex,
    "choice": _choice,
    "ebnf_grammar": _ebnf,
}
