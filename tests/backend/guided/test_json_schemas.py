"""A thousand random schemas, and what random tokens under their masks spell, against the library jsonschema."""

from __future__ import annotations

import json
import random
import re
from decimal import Decimal
from typing import Any

import jsonschema
import pytest
from tokenizers import Tokenizer

from tests.fakes.guides import FAMILY, NO_TEXT, accepts, allowed, encode, guides_for, seeded, write
from tests.tokenizer_zoo import tokenizer_of
from trident_backend.guided.compiler import GrammarCompiler
from trident_ensemble.contract.errors import RequestError

NUM_SCHEMAS = 1000
_PATTERNS = ("^[a-z]{2,5}$", "^(yes|no)$", r"^\d{3}-\d{4}$", "^é?[^a-z]{1,3}$", "x", "^[A-Z]", r"\.$")
_WORDS = ("a", "b c", "é", "日本", "name", 'quo"te', "back\\slash", "new\nline", "", "x/y")


class SchemaMaker:
    """Random schemas of what is known to be supported, nested to a depth."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def schema(self) -> dict[str, Any]:
        """One schema, sometimes with definitions that refer to themselves."""
        if self._rng.random() < 0.2:
            tree: dict[str, Any] = {"type": "object", "properties": {"value": self._node(1)}, "required": ["value"]}
            tree["properties"]["children"] = {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}
            tree["additionalProperties"] = False
            return {"$ref": "#/$defs/tree", "$defs": {"tree": tree}}
        return self._node(3)

    def _node(self, depth: int) -> dict[str, Any]:
        kinds = [self._string, self._integer, self._number, self._enum, self._const, self._plain]
        if depth:
            kinds += [lambda: self._object(depth), lambda: self._object(depth), lambda: self._array(depth)]
            kinds += [lambda: self._any_of(depth)]
        return self._rng.choice(kinds)()

    def _object(self, depth: int) -> dict[str, Any]:
        names = self._rng.sample([word for word in _WORDS if word], self._rng.randint(1, 4))
        schema: dict[str, Any] = {"type": "object", "properties": {name: self._node(depth - 1) for name in names}}
        schema["required"] = [name for name in names if self._rng.random() < 0.6]
        if self._rng.random() < 0.5 or any(json.dumps(name)[1:-1] != name and name.isascii() for name in names):
            schema["additionalProperties"] = False
        elif self._rng.random() < 0.5:
            schema["additionalProperties"] = {"type": "integer"}
        return schema

    def _array(self, depth: int) -> dict[str, Any]:
        least = self._rng.randint(0, 2)
        bounds = {"minItems": least, "maxItems": least + self._rng.randint(0, 2)}
        if self._rng.random() < 0.3:
            return {"type": "array", "prefixItems": [self._node(depth - 1)], "items": self._node(depth - 1), **bounds}
        return {"type": "array", "items": self._node(depth - 1), **bounds}

    def _any_of(self, depth: int) -> dict[str, Any]:
        return {"anyOf": [self._node(depth - 1) for _ in range(self._rng.randint(2, 3))]}

    def _string(self) -> dict[str, Any]:
        if self._rng.random() < 0.4:
            return {"type": "string", "pattern": self._rng.choice(_PATTERNS)}
        least = self._rng.randint(0, 3)
        return {"type": "string", "minLength": least, "maxLength": least + self._rng.randint(0, 9)}

    def _integer(self) -> dict[str, Any]:
        low = self._rng.randint(-2000, 2000)
        high = low + self._rng.choice([0, 1, 9, 137, 10**6])
        return self._rng.choice(
            [
                {"type": "integer", "minimum": low, "maximum": high},
                {"type": "integer", "exclusiveMinimum": low - 1, "exclusiveMaximum": high + 1},
                {"type": "integer", "minimum": low},
                {"type": "integer", "multipleOf": self._rng.choice([2, 7, 60])},
            ]
        )

    def _number(self) -> dict[str, Any]:
        low = self._rng.randint(-50, 50) / 4
        return {"type": "number", "minimum": low, "exclusiveMaximum": low + self._rng.choice([0.25, 0.5, 3, 1000])}

    def _enum(self) -> dict[str, Any]:
        return {"enum": self._rng.sample([*_WORDS, 1, 2.5, True, None, [1, "a"], {"k": 0}], self._rng.randint(1, 4))}

    def _const(self) -> dict[str, Any]:
        return {"const": self._rng.choice([*_WORDS, -3, False, None, [], {"k": [1]}])}

    def _plain(self) -> dict[str, Any]:
        return {"type": self._rng.choice(["boolean", "null", ["string", "null"], ["integer", "boolean"]])}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizer_of(FAMILY)


@pytest.fixture(scope="module")
def guides(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> GrammarCompiler:
    return guides_for(tokenizer, tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="module")
def closers(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset(token_id for mark in '"}],.' for token_id in encode(tokenizer, mark))


def read(text: str) -> Any:
    """The value of a JSON text; numbers exact."""
    return json.loads(text, parse_float=Decimal)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_json_schemas_every_output_is_valid_and_every_cut_one_can_be_completed(
    guides: GrammarCompiler, tokenizer: Tokenizer, closers: frozenset[int], part: int
) -> None:
    num_ended = 0
    for seed in range(part * NUM_SCHEMAS // 10, (part + 1) * NUM_SCHEMAS // 10):
        rng = seeded(seed)
        schema = SchemaMaker(rng).schema()
        guide = guides.compile("json_schema", json.dumps(schema)).start(frozenset({NO_TEXT}))
        token_ids, has_ended = write(guide, rng, closers=closers, most=80)
        num_ended += has_ended
        if not has_ended:
            rest, has_ended = write(guide, seeded(0), closers=closers, most=2000)
            token_ids += rest
        text = tokenizer.decode(token_ids, skip_special_tokens=False)
        assert has_ended, f"{seed}: {text[-200:]!r} of {schema}"
        jsonschema.Draft202012Validator(schema).validate(read(text))
    assert num_ended >= NUM_SCHEMAS // 20, "too few came to their end by themselves"


def test_json_schemas_what_is_valid_is_accepted(guides: GrammarCompiler, tokenizer: Tokenizer) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 4}, "tags": {"items": {"enum": ["é", 1, None]}}},
        "required": ["name"],
        "additionalProperties": False,
    }
    grammar = guides.compile("json_schema", json.dumps(schema))
    valid: list[Any] = [{"name": "日本"}, {"name": "", "tags": []}, {"name": 'a"\\\n', "tags": ["é", 1, None]}]
    for value in valid:
        jsonschema.validate(value, schema)
        for indent in (None, 2):
            assert accepts(tokenizer, grammar, json.dumps(value, ensure_ascii=False, indent=indent))
    invalid: list[Any] = [{"tags": []}, {"name": "12345"}, {"name": "a", "more": 1}, []]
    for value in invalid:
        assert not accepts(tokenizer, grammar, json.dumps(value, ensure_ascii=False))


def test_json_schemas_any_json_is_an_object_or_an_array(
    guides: GrammarCompiler, tokenizer: Tokenizer, closers: frozenset[int]
) -> None:
    grammar = guides.compile("json", "")
    assert guides.compile("json", " \n") is grammar
    values: list[Any] = [{"a": [1.5e-3, {"b": None}, 'é\u2028"\\']}, [], [[True]]]
    for value in values:
        assert accepts(tokenizer, grammar, json.dumps(value, ensure_ascii=False, indent=1))
    for text in ("1", '"a"', " []", "[] ", "[01]", "{'a': 1}", "[1,]"):
        assert not accepts(tokenizer, grammar, text)
    for seed in range(50):
        token_ids, has_ended = write(grammar.start(frozenset({NO_TEXT})), seeded(seed), closers=closers)
        assert not has_ended or isinstance(json.loads(tokenizer.decode(token_ids)), dict | list)


def test_json_schemas_blanks_between_parts_come_to_an_end(guides: GrammarCompiler, tokenizer: Tokenizer) -> None:
    guide = guides.compile("json", "").start(frozenset())
    blank = encode(tokenizer, " ")[0]
    guide.advance(encode(tokenizer, "[")[0])
    for _ in range(32):
        assert blank in allowed(guide)[0]
        guide.advance(blank)
    assert blank not in allowed(guide)[0]


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"properties": {'a"b': {"type": "string"}}}, "additionalProperties: false"),
        ({"$defs": {"x": {"properties": {"\n": {}}, "additionalProperties": {}}}, "$ref": "#/$defs/x"}, r"'\n' can"),
        ({"enum": [2**53 + 1]}, "9007199254740993 is too large: integers are exact to 9007199254740992"),
        ({"type": "object", "minProperties": 2}, "minProperties: more than 1"),
        (
            {"items": {"properties": {f"n{i}": {} for i in range(401)}}},
            "properties: 401 optional names in one object are too many",
        ),
        (
            {"allOf": [{"properties": {f"n{i}": {} for i in part}} for part in (range(300), range(300, 600))]},
            "600 optional names",
        ),
        ({"items": [{"multipleOf": 997}, {"allOf": [{"multipleOf": 101}]}]}, "multipleOf"),
    ],
)
def test_json_schemas_what_would_allow_too_much_is_refused(
    guides: GrammarCompiler, schema: dict[str, Any], problem: str
) -> None:
    with pytest.raises(RequestError, match=re.escape(problem)):
        guides.compile("json_schema", json.dumps(schema))


@pytest.mark.slow
def test_json_schemas_as_many_optional_names_as_are_taken_can_be_written(
    guides: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    names = [f"property_{number}" for number in range(1000)]
    schema = {"properties": {name: {"type": "string"} for name in names}, "required": names[400:]}
    grammar = guides.compile("json_schema", json.dumps({**schema, "type": "object", "additionalProperties": False}))
    assert accepts(tokenizer, grammar, json.dumps(dict.fromkeys(names[::50][:8] + names[400:], "x y")))


def test_json_schemas_values_in_a_schema_are_left_as_they_are(guides: GrammarCompiler, tokenizer: Tokenizer) -> None:
    value = {"exclusiveMaximum": 5, "multipleOf": 99991}
    schema = {"properties": {"const": {"const": value}}, "required": ["const"], "additionalProperties": False}
    grammar = guides.compile("json_schema", json.dumps(schema))
    assert accepts(tokenizer, grammar, json.dumps({"const": value}))
    bounds = {"properties": {"enum": {"type": "number", "minimum": 5, "exclusiveMinimum": 5, "maximum": 5.25}}}
    grammar = guides.compile("json_schema", json.dumps(bounds))
    assert accepts(tokenizer, grammar, '{"enum": 5.1}')
    assert not accepts(tokenizer, grammar, '{"enum": 5}')


ANY = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": False}


@pytest.mark.parametrize(
    "wrapper",
    [
        {"name": "answer", "strict": True, "schema": ANY},
        {"name": "answer", "description": "what is asked", "strict": None, "schema": ANY},
        {"name": "answer", "schema": ANY},
        {"schema": ANY},
        {"type": "json_schema", "json_schema": {"name": "answer", "strict": False, "schema": ANY}},
        {"type": "json_schema", "name": "answer", "schema": ANY},
    ],
)
@pytest.mark.parametrize("kind", ["json", "json_schema"])
def test_json_schemas_openais_wrappers_are_taken_for_their_schema(
    guides: GrammarCompiler, tokenizer: Tokenizer, kind: str, wrapper: dict[str, Any]
) -> None:
    grammar = guides.compile(kind, json.dumps(wrapper))
    assert accepts(tokenizer, grammar, '{"x": 1}')
    for text in ("{}", '{"x": "a"}', "[]", "1", '{"name": 1}'):
        assert not accepts(tokenizer, grammar, text)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"name": "answer", "parameters": ANY}, "#: is not a JSON schema: name, parameters would allow every output"),
        ({"name": "answer", "description": "text", "input_schema": ANY}, "is not a JSON schema"),
        ({"name": "answer", "strict": "yes", "schema": ANY}, "is not a JSON schema"),
        ({"name": "answer", "schema": "x"}, "#/schema: must be a JSON schema"),
        ({"name": "answer", "schema": None}, "#/schema: must be a JSON schema"),
        ({"type": "json_schema"}, "#/json_schema: must be an object with a schema"),
        ({"type": "json_schema", "json_schema": ANY}, "#/json_schema: must be an object with a schema"),
        ({"type": "json_object"}, "#/type: must be one of string, number"),
        ({"response_format": {"type": "json_schema"}}, "is not a JSON schema"),
        ({"schema": {"schema": ANY}}, "#/schema: is not a JSON schema"),
        ({"type": "object", "properties": {"x": {"typ": "integer"}}}, "#/properties/x: is not a JSON schema: typ"),
        ({"name": "a", "schema": {"type": "object", "properties": {"a": {"not": {}}}}}, "#/schema/properties/a/not: "),
        ({"type": "json_schema", "json_schema": {"schema": {"if": {"type": "null"}, "then": False}}}, "/schema/if: "),
        (False, "false allows no output"),
    ],
)
@pytest.mark.parametrize("kind", ["json", "json_schema"])
def test_json_schemas_what_is_no_schema_is_refused_and_never_allows_everything(
    guides: GrammarCompiler, kind: str, value: Any, problem: str
) -> None:
    with pytest.raises(RequestError, match=re.escape(problem)) as caught:
        guides.compile(kind, json.dumps(value))
    assert caught.value.field == "guided_decoding_guide"


def test_json_schemas_json_with_a_schema_follows_it(guides: GrammarCompiler, tokenizer: Tokenizer) -> None:
    grammar = guides.compile("json", '{"type": "object", "required": ["x"]}')
    assert accepts(tokenizer, grammar, '{"x": [1]}')
    assert not accepts(tokenizer, grammar, "{}")
    with pytest.raises(RequestError, match="is not valid JSON"):
        guides.compile("json", "whatever")


#: Keywords with a value that means nothing, beside a type that they could mean something for.
NEUTRAL: list[tuple[str, dict[str, Any]]] = [
    ("array", {"uniqueItems": False}),
    ("array", {"minItems": 0, "contains": {"type": "null"}, "minContains": 0}),
    ("array", {"minContains": 3}),
    ("array", {"maxContains": 0}),
    ("array", {"unevaluatedItems": True, "items": True, "additionalItems": {}}),
    ("array", {"minItems": 0.0}),
    ("object", {"propertyNames": True}),
    ("object", {"propertyNames": {}}),
    ("object", {"propertyNames": {"type": "string", "title": "a name"}}),
    ("object", {"dependentRequired": {"a": []}, "dependentSchemas": {"a": True}, "dependencies": {"a": [], "b": {}}}),
    ("object", {"unevaluatedProperties": {}, "additionalProperties": True, "patternProperties": {}}),
    ("object", {"required": [], "minProperties": 0, "properties": {}}),
    ("string", {"format": "no such format"}),
    ("string", {"format": "json-pointer", "minLength": 0, "pattern": ".*"}),
    ("string", {"contentMediaType": "application/json", "contentEncoding": "base64", "contentSchema": {"not": {}}}),
    ("integer", {"format": "int32", "uniqueItems": True, "propertyNames": False, "contains": False}),
    ("integer", {"not": False, "allOf": [], "$comment": "x", "x-vendor": 1}),
    ("integer", {"if": {"minimum": 3}}),
    ("integer", {"then": False, "else": False}),
    ("integer", {"if": {"minimum": 3}, "then": True, "else": {}}),
    ("integer", {"if": True, "else": False, "then": {}}),
    ("integer", {"title": "t", "description": "d", "default": "x", "examples": [{"not": {}}], "deprecated": True}),
    ("integer", {"readOnly": True, "writeOnly": False, "nullable": True, "example": 1, "strict": True, "name": "n"}),
    ("integer", {"$schema": "https://example.com/schema", "$id": "https://example.com/x", "$anchor": "a"}),
    ("integer", {"$dynamicAnchor": "a", "$vocabulary": {}, "$defs": {}, "definitions": {}}),
    ("integer", {"$defs": {"unused": {"not": {}, "uniqueItems": True, "minimum": "x"}}}),
]
SAMPLES: dict[str, list[Any]] = {
    "array": [[], [1, 1], ["a", None]], "object": [{}, {"a": 1, "b": "c"}], "string": ["", "abc", "é"],
    "integer": [0, -7, 12],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "keywords"), NEUTRAL)
def test_json_schemas_what_changes_nothing_passes(
    guides: GrammarCompiler, tokenizer: Tokenizer, kind: str, keywords: dict[str, Any]
) -> None:
    inner = {"type": kind, **keywords}
    grammar = guides.compile("json_schema", json.dumps(inner))
    nested = guides.compile("json_schema", json.dumps({"type": "array", "items": inner}))
    for other, samples in SAMPLES.items():
        for text in (json.dumps(sample, ensure_ascii=False) for sample in samples):
            assert accepts(tokenizer, grammar, text) == (other == kind)
            assert accepts(tokenizer, nested, f"[{text}]") == (other == kind)


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"properties": {"tags": {"type": "array", "uniqueItems": True}}}, "#/properties/tags/uniqueItems: cannot be"),
        ({"items": {"anyOf": [{"type": "null"}, {"not": {"type": "null"}}]}}, "#/items/anyOf/1/not: cannot be"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"contains": {"type": "null"}}}}, "#/$defs/a/contains: cannot be"),
        ({"properties": {"a/b~c": {"minimum": "3"}}}, "#/properties/a~1b~0c/minimum: must be a number, not '3'"),
        ({"properties": {"a": {"type": "any"}}}, "#/properties/a/type: must be one of string, number"),
        ({"properties": {"a": {"enum": []}}}, "#/properties/a/enum: must be a list of at least one value"),
        ({"properties": {"a": {"required": "b"}}}, "#/properties/a/required: must be a list of names, not 'b'"),
        ({"properties": {"a": 3}}, "#/properties/a: must be a schema, which is an object, true or false"),
        ({"properties": ["a"]}, "#/properties: must be an object of schemas"),
        ({"prefixItems": {"type": "null"}}, "#/prefixItems: must be a list of schemas"),
        ({"items": {"minLength": -1}}, "#/items/minLength: must be a whole number of at least 0, not -1"),
        ({"items": {"format": 3}}, "#/items/format: must be a text, not 3"),
        (
            {"type": "object", "properties": {"a": {"type": "integer", "minimum": 3, "maximum": 2}}, "required": ["a"]},
            "#/properties/a: ",
        ),
        ({"items": {"pattern": "[a", "type": "string"}, "minItems": 1, "type": "array"}, "#/items: "),
        ({"items": {"allOf": [{"type": "null"}, {"type": "array"}]}, "minItems": 1, "type": "array"}, "#/items: Unsat"),
        ({"items": {"$ref": "#/$defs/none"}, "minItems": 1, "type": "array"}, "#/items: "),
        ({"items": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}, "#/items: oneOf constraints"),
    ],
)
def test_json_schemas_errors_name_the_place_in_the_schema(
    guides: GrammarCompiler, schema: dict[str, Any], problem: str
) -> None:
    with pytest.raises(RequestError) as caught:
        guides.compile("json_schema", json.dumps(schema))
    assert caught.value.problem.startswith(problem), caught.value.problem


def test_json_schemas_a_place_deep_down_is_said_in_short(guides: GrammarCompiler) -> None:
    schema: dict[str, Any] = {"not": {}}
    for _ in range(300):
        schema = {"properties": {"name": schema}}
    with pytest.raises(RequestError, match=r"guide: #\.\.\..*/properties/name/not: cannot be followed") as caught:
        guides.compile("json_schema", json.dumps(schema))
    assert len(str(caught.value)) < 400
