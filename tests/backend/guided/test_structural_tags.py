"""Structural tags: what their grammars allow, against a checker that knows formats, JSON and texts, but no grammar."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from tests import tokenizer_zoo
from tests.fakes.guides import NO_TEXT, allowed, encode, follow, guides_for, seeded, write
from trident_backend.guided.compiler import CompiledGrammar, GrammarCompiler
from trident_backend.guided.tag_formats import TagFormatError, parse_structural_tag
from trident_ensemble.contract.errors import RequestError

#: Added tokens; the second of each pair is special.
ADDED = ("<tool_call>", "</tool_call>", "<|python_tag|>", "<think>", "</think>")
SPECIAL = frozenset({"<|python_tag|>"})
_MARKS = {text: chr(0xE000 + number) for number, text in enumerate(ADDED)}
_MARK = re.compile(f"[{''.join(_MARKS.values())}]")

Format = dict[str, Any]


class Checked:
    """A tokenizer with markers, its guides, and texts in which a marker is one character of its own."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Tokenizer = tokenizer_zoo.byte_level_bpe()
        self.tokenizer.add_tokens([AddedToken(text, special=False) for text in ADDED if text not in SPECIAL])
        self.tokenizer.add_special_tokens(sorted(SPECIAL))
        self.ids = {text: self.token(text) for text in ADDED}
        self.guides: GrammarCompiler = guides_for(self.tokenizer, folder)
        plain = tokenizer_zoo.byte_level_bpe()
        self._plain = plain

    def token(self, text: str) -> int:
        """The id of a token."""
        token_id = self.tokenizer.token_to_id(text)
        assert token_id is not None
        return token_id

    def compile(self, form: Format) -> CompiledGrammar:
        """The grammar of a format."""
        return self.guides.compile("structural_tag", json.dumps({"type": "structural_tag", "format": form}))

    def text(self, token_ids: list[int], markers: set[str]) -> str:
        """What tokens say."""
        by_id = {self.ids[marker]: _MARKS[marker] for marker in markers}
        parts: list[bytes] = []
        for token_id in token_ids:
            if token_id in by_id:
                parts.append(by_id[token_id].encode())
            else:
                parts.append(self.guides._read().vocabulary.texts[token_id])
        return b"".join(parts).decode()

    def accepts(self, grammar: CompiledGrammar, text: str) -> bool:
        """Whether a text with marks may be written, and may end."""
        guide = grammar.start(frozenset({NO_TEXT}))
        for piece in re.split(f"({_MARK.pattern})", text):
            token_ids = [self.ids[ADDED[ord(piece) - 0xE000]]] if _MARK.fullmatch(piece) else self.spelled(piece)
            if not follow(guide, token_ids):
                return False
        return NO_TEXT in allowed(guide)[0]

    def spelled(self, text: str) -> list[int]:
        """The ids of a text without any added token."""
        return [token_id for piece in re.split("(<)", text) for token_id in encode(self._plain, piece)]


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Checked:
    """One tokenizer, and its guides."""
    return Checked(tmp_path_factory.mktemp("tags"))


# The checker: from where a format begins, every place where it may end.


def literals(form: Format) -> Iterator[str]:
    """Every text of a format that may be one token."""
    for key in ("value", "begin", "end", "separator"):
        if key in form:
            yield form[key]
    for key in ("excludes", "triggers"):
        yield from form.get(key, [])
    for part in [*form.get("elements", []), *form.get("tags", []), *([form["content"]] if "content" in form else [])]:
        yield from literals(part)


def markers_of(form: Format) -> set[str]:
    """The tokens that a format matches by id."""
    texts = [*literals(form)]
    return {text for text in ADDED if text in texts or (text in SPECIAL and any(text in other for other in texts))}


def ends(form: Format, text: str, begin: int, markers: set[str]) -> set[int]:  # noqa: PLR0911, PLR0912 (a case a kind)
    """Every place where the format may end that begins at one."""

    def marked(literal: str) -> str:
        for marker in markers:
            literal = literal.replace(marker, _MARKS[marker])
        return literal

    def fixed(literal: str, begin: int) -> set[int]:
        literal = marked(literal)
        return {begin + len(literal)} if text.startswith(literal, begin) else set()

    def free(begin: int, excludes: list[str]) -> set[int]:
        last = next((place for place in range(begin, len(text)) if _MARK.match(text[place])), len(text))
        return {end for end in range(begin, last + 1) if not any(marked(word) in text[begin:end] for word in excludes)}

    def then(begins: set[int], part: Format) -> set[int]:
        return {end for begin in begins for end in ends(part, text, begin, markers)}

    def tags(begins: set[int]) -> set[int]:
        return {end for tag in form["tags"] for end in then(begins, {"type": "tag", **tag})}

    kind = form["type"]
    if kind == "any_text":
        return free(begin, form.get("excludes", []))
    if kind == "const_string":
        return fixed(form["value"], begin)
    if kind == "regex":
        pattern = re.compile(form["pattern"], re.ASCII)
        return {end for end in range(begin, len(text) + 1) if pattern.fullmatch(text[begin:end])}
    if kind == "json_schema":
        # Blanks may stand around JSON, as they may within it.
        blanks = re.compile(r"[ \n\r\t]*")
        try:
            value, end = json.JSONDecoder().raw_decode(text, blanks.match(text, begin).end())  # type: ignore[union-attr]
        except ValueError:
            return set()
        last = blanks.match(text, end).end()  # type: ignore[union-attr]
        is_valid = jsonschema.Draft202012Validator(form["json_schema"]).is_valid(value)
        return {*range(end, last + 1)} if is_valid else set()
    if kind == "sequence":
        places = {begin}
        for part in form["elements"]:
            places = then(places, part)
        return places
    if kind == "or":
        return {end for part in form["elements"] for end in then({begin}, part)}
    if kind == "optional":
        return {begin} | then({begin}, form["content"])
    if kind == "tag":
        inner = then(fixed(form["begin"], begin), form["content"])
        return {end for place in inner for end in fixed(form["end"], place)}
    if kind == "tags_with_separator":
        found = tags({begin})
        places = found | (set() if form.get("at_least_one") else {begin})
        while found and not form.get("stop_after_first"):
            found = tags({end for place in found for end in fixed(form["separator"], place)}) - places
            places |= found
        return places
    assert kind == "triggered_tags"
    excludes = [*form.get("excludes", []), *form["triggers"]]
    if form.get("at_least_one"):
        found = tags({begin})
        if form.get("stop_after_first"):
            return found
        places = {end for place in found for end in free(place, excludes)}
    else:
        places = free(begin, excludes)
    after: set[int] = set()
    found = places
    while found := tags(found) - after:
        after |= found
        if form.get("stop_after_first"):
            return places | after
        found = {end for place in found for end in free(place, excludes)}
        places |= found
    return places


def is_valid(form: Format, text: str) -> bool:
    """Whether a text with marks is what the format asks for."""
    markers = markers_of(form)
    return any(len(said) in ends(form, said, 0, markers) for said in (text, text.strip(" \n\r\t")))


# Random formats.

_SCHEMAS: tuple[Format, ...] = (
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False},
    {"type": "object", "properties": {"b": {"enum": ["x", "</tool_call>"]}}, "additionalProperties": False},
    {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    {
        "$ref": "#/$defs/n",
        "$defs": {
            "n": {
                "type": "object",
                "properties": {"n": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}},
                "required": ["n"],
                "additionalProperties": False,
            }
        },
    },
)
_WORDS = st.sampled_from(["ab", "</", "=", "{", "é", "", "<tool_call>", "</think>"])
_INNER: st.SearchStrategy[Format] = st.recursive(
    st.sampled_from(_SCHEMAS).map(lambda schema: {"type": "json_schema", "json_schema": schema})
    | _WORDS.map(lambda word: {"type": "const_string", "value": word})
    | st.sampled_from(["[0-9]{1,3}", "x|yz", "a)?|(b"][:2]).map(lambda p: {"type": "regex", "pattern": p}),
    lambda parts: (
        st.lists(parts, min_size=1, max_size=3).map(lambda some: {"type": "sequence", "elements": some})
        | st.lists(parts, min_size=1, max_size=2).map(lambda some: {"type": "or", "elements": some})
        | parts.map(lambda part: {"type": "optional", "content": part})
    ),
    max_leaves=4,
)
_ENDS = st.sampled_from(["</tool_call>", "|end", "</f>"])


def _tag(begin: st.SearchStrategy[str]) -> st.SearchStrategy[Format]:
    content = _INNER | st.just({"type": "any_text"})
    return st.builds(lambda b, c, e: {"type": "tag", "begin": b, "content": c, "end": e}, begin, content, _ENDS)


def _begin(tag: Format) -> str:
    """Tags that begin alike are told apart by what comes next, which free text and JSON are not."""
    begin: str = tag["begin"]
    return begin.removesuffix("x")


_FLAGS = st.fixed_dictionaries({}, optional={"at_least_one": st.booleans(), "stop_after_first": st.booleans()})
_TRIGGERED = st.builds(
    lambda tags, flags, excludes: {
        "type": "triggered_tags", "triggers": ["<tool_call>", "<f=", "<|python_tag|>"], "tags": tags,
        "excludes": excludes, **flags,
    },
    st.lists(
        _tag(st.sampled_from(["<tool_call>", "<f=a>", "<f=b>", "<|python_tag|>", "<|python_tag|>x"])),
        min_size=1, max_size=3, unique_by=_begin,
    ),
    _FLAGS,
    st.sampled_from([[], ["qq"], ["<think>"]]),
)  # fmt: skip
_SEPARATED = st.builds(
    lambda tags, flags, separator: {
        "type": "tags_with_separator", "tags": tags, "separator": separator, **flags,
    },
    st.lists(_tag(st.sampled_from(["<tool_call>", "#"])), min_size=1, max_size=2, unique_by=_begin),
    _FLAGS,
    st.sampled_from([", ", "<tool_call>"]),
)  # fmt: skip
_THOUGHT = {
    "type": "optional",
    "content": {"type": "tag", "begin": "<think>", "content": {"type": "any_text"}, "end": "</think>"},
}
_FORMATS = (
    _INNER
    | _TRIGGERED
    | _SEPARATED
    | (_TRIGGERED | _SEPARATED | _INNER).map(lambda last: {"type": "sequence", "elements": [_THOUGHT, last]})
)


def _compiled(checked: Checked, form: Format) -> CompiledGrammar:
    """The grammar of a random format; one that allows nothing but the empty text is refused, and is no example."""
    try:
        return checked.compile(form)
    except RequestError as error:
        assume("allows no text" not in str(error))
        raise


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(_FORMATS, st.integers(0, 2**32))
def test_structural_tag_ends_in_valid_text(checked: Checked, form: Format, seed: int) -> None:
    """A random walk through the masks ends in what the checker accepts."""
    grammar = _compiled(checked, form)
    rng = seeded(seed)
    closers = frozenset({*checked.ids.values(), *map(checked.token, '}]"<>|/')})
    for _ in range(3):
        token_ids, is_complete = write(
            grammar.start(frozenset({NO_TEXT})), rng, end_id=NO_TEXT, closers=closers, most=120
        )
        try:
            text = checked.text(token_ids, markers_of(form))
        except UnicodeDecodeError:
            assert not is_complete
            continue
        assert not is_complete or is_valid(form, text), (form, text)


# Random texts of a format.

_VALUES = {
    json.dumps(schema): values
    for schema, values in zip(
        _SCHEMAS,
        (
            ['{"a":1}', '{ "a" : -20 }'],
            ["{}", '{"b": "x"}', '{"b":"</tool_call>"}'],
            ["[]", "[true, false]", "[\n true]"],
            ['{"n":null}', '{"n": {"n": {"n":null}}}'],
        ),
        strict=True,
    )
}
_PROSE = ("a", " ", "\n", "<", "<tool", "<f", "{", "é", "日", '"', "</", "</think", "q", "#")


def sample(form: Format, rng: random.Random, markers: set[str]) -> str:  # noqa: PLR0911 (a case a kind)
    """A random text of a format, or nearly one."""

    def marked(literal: str) -> str:
        for marker in markers:
            literal = literal.replace(marker, _MARKS[marker])
        return literal

    def one(part: Format) -> str:
        return sample(part, rng, markers)

    def prose() -> str:
        return "".join(rng.choices(_PROSE, k=rng.randrange(6)))

    kind = form["type"]
    if kind == "any_text":
        return prose()
    if kind == "const_string":
        return marked(form["value"])
    if kind == "regex":
        return rng.choice({"[0-9]{1,3}": ["1", "234"], "x|yz": ["x", "yz"]}[form["pattern"]])
    if kind == "json_schema":
        return rng.choice(_VALUES[json.dumps(form["json_schema"])])
    if kind == "sequence":
        return "".join(map(one, form["elements"]))
    if kind == "or":
        return one(rng.choice(form["elements"]))
    if kind == "optional":
        return rng.choice(["", one(form["content"])])
    if kind == "tag":
        return marked(form["begin"]) + one(form["content"]) + marked(form["end"])
    most = 1 if form.get("stop_after_first") else 3
    tags = [
        one({"type": "tag", **rng.choice(form["tags"])})
        for _ in range(rng.randint(int(form.get("at_least_one", False)), most))
    ]
    if kind == "tags_with_separator":
        return marked(form["separator"]).join(tags)
    before = "" if form.get("at_least_one") else prose()
    after = "" if form.get("stop_after_first") and tags else prose()
    return before + prose().join(tags) + after if most > 1 else before + "".join(tags) + after


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(_FORMATS, st.integers(0, 2**32))
def test_structural_tag_accepts_what_the_checker_accepts(checked: Checked, form: Format, seed: int) -> None:
    """Texts of a format may be written."""
    grammar = _compiled(checked, form)
    rng = seeded(seed)
    for _ in range(5):
        text = sample(form, rng, markers_of(form))
        assert checked.accepts(grammar, text) or not is_valid(form, text), (form, text)


_OBJECT = {"type": "json_schema", "json_schema": _SCHEMAS[0]}


def _call(begin: str, end: str, **flags: bool) -> Format:
    tag = {"type": "tag", "begin": begin, "content": _OBJECT, "end": end}
    return {"type": "triggered_tags", "triggers": [begin], "tags": [tag], **flags}


def test_structural_tag_takes_a_whole_text_for_the_token_that_it_is(checked: Checked) -> None:
    """The marker is followed by a call; its spelling is text."""
    grammar = checked.compile(_call("<tool_call>", "</tool_call>"))
    start, end = _MARKS["<tool_call>"], _MARKS["</tool_call>"]
    assert checked.accepts(grammar, f'a {start}{{"a": 1}}{end} b')
    assert checked.accepts(grammar, "prose with <tool_call>, no call")
    assert not checked.accepts(grammar, f"a {start} no call")
    assert not checked.accepts(grammar, f'a {start}{{"a": 1}}</tool_call>')
    guide = grammar.start(frozenset({NO_TEXT}))
    assert checked.ids["</tool_call>"] not in allowed(guide)[0]
    assert checked.ids["<think>"] in allowed(guide)[0], "other added tokens are text"
    assert checked.ids["<|python_tag|>"] not in allowed(guide)[0], "special tokens are not"


def test_structural_tag_without_tokens_is_followed_by_its_text(checked: Checked) -> None:
    """A trigger that no token spells is met wherever it is spelled."""
    grammar = checked.compile(_call("<fn>", "</fn>"))
    assert checked.accepts(grammar, 'a <fn>{"a": 1}</fn> b <f')
    assert not checked.accepts(grammar, "prose with <fn>, no call")


def test_structural_tag_follows_draft_tokens(checked: Checked) -> None:
    """The masks after guessed tokens are those after taken ones, markers included."""
    grammar = checked.compile(_call("<tool_call>", "</tool_call>"))
    guessed = (*encode(checked.tokenizer, "a"), checked.ids["<tool_call>"], *encode(checked.tokenizer, "{"))
    guide, taken = grammar.start(frozenset({NO_TEXT})), grammar.start(frozenset({NO_TEXT}))
    masks = allowed(guide, guessed)
    for token_id, mask in zip(guessed, masks, strict=False):
        assert allowed(taken)[0] == mask
        taken.advance(token_id)
    assert allowed(taken)[0] == masks[-1]


def test_structural_tag_in_its_first_form_means_triggered_tags(checked: Checked) -> None:
    """`structures` and `triggers`, as xgrammar had them first."""
    old = {
        "type": "structural_tag",
        "structures": [{"begin": "<tool_call>", "schema": _SCHEMAS[0], "end": "</tool_call>"}],
        "triggers": ["<tool_call>"],
    }
    grammar = checked.guides.compile("structural_tag", json.dumps(old))
    start, end = _MARKS["<tool_call>"], _MARKS["</tool_call>"]
    assert checked.accepts(grammar, f'a {start}{{"a":1}}{end}')
    assert not checked.accepts(grammar, f'a {start}{{"b":1}}{end}')


def test_structural_tag_splits_its_texts_at_special_tokens(checked: Checked) -> None:
    """A special token in the middle of a text is matched by its id, for no text has it."""
    grammar = checked.compile({"type": "const_string", "value": "a<|python_tag|>b"})
    assert checked.accepts(grammar, f"a{_MARKS['<|python_tag|>']}b")
    assert not checked.accepts(grammar, "a<|python_tag|>b")


_BAD = {"type": "json_schema", "json_schema": {"type": "object", "properties": {"x": {"uniqueItems": True}}}}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([], "#: must be an object with"),
        ({"type": "structural_tag"}, "#/format: must be an object whose type is one of"),
        ({"type": "structural_tag", "format": {"type": "grammar"}}, "#/format: must be an object whose type"),
        ({"type": "structural_tag", "format": {"type": "sequence"}}, "#/format/elements: must be a list"),
        ({"type": "structural_tag", "format": {"type": "regex", "pattern": 3}}, "#/format/pattern: must be a text"),
        ({"type": "structural_tag", "format": {"type": "regex", "pattern": "a\\"}}, "single backslash"),
        ({"type": "structural_tag", "format": {"type": "regex", "pattern": ""}}, "#/format/pattern: must not be empty"),
        (
            {"type": "structural_tag", "format": {"type": "const_string", "value": "x" * ((1 << 16) + 1)}},
            "#/format/value: all texts and patterns are too long: at most 65536 bytes together",
        ),
        (
            {
                "type": "structural_tag",
                "format": {"type": "sequence", "elements": [{"type": "const_string", "value": "ä" * 17_000}] * 2},
            },
            "#/format/elements/1/value: all texts and patterns are too long",
        ),
        ({"type": "structural_tag", "format": {"type": "regex", "pattern": "a)(b"}}, "unopened group"),
        ({"type": "structural_tag", "format": {"type": "any_text", "x": 1}}, "#/format/x: is not known"),
        ({"type": "structural_tag", "format": {"type": "const_string", "value": "\ud800"}}, "is not valid text"),
        ({"type": "structural_tag", "format": _BAD}, "#/format/json_schema/properties/x/uniqueItems: cannot be"),
        (
            {"type": "structural_tag", "format": {"type": "sequence", "elements": [{"type": "any_text"}, _OBJECT]}},
            "#/format/elements/0: nothing tells where this free text ends",
        ),
        (
            {"type": "structural_tag", "format": {**_call("<a", "</a>"), "triggers": ["<b"]}},
            "#/format/tags/0/begin: must begin with exactly one of the triggers",
        ),
        (
            {"type": "structural_tag", "format": {**_call("<a", "</a>"), "at_least_one": 1}},
            "#/format/at_least_one: must be true or false",
        ),
        (
            {"type": "structural_tag", "format": {"type": "or", "elements": [{"type": "any_text"}] * 2001}},
            "there are too many formats: at most 2000",
        ),
    ],
)
def test_structural_tag_refuses_by_the_place(checked: Checked, value: Any, problem: str) -> None:
    """What cannot be followed is named by its JSON pointer."""
    with pytest.raises(RequestError, match=re.escape(problem)) as raised:
        checked.guides.compile("structural_tag", json.dumps(value))
    assert raised.value.field == "guided_decoding_guide"


def test_structural_tag_refuses_by_the_place_in_one_of_several_schemas(checked: Checked) -> None:
    """What only the library finds is named, too."""
    tags = [
        {"type": "tag", "begin": "<tool_call>", "content": {"type": "json_schema", "json_schema": schema}, "end": "e"}
        for schema in (_SCHEMAS[0], {"type": "object", "properties": {"x": {"type": "string", "pattern": "(?=a)b"}}})
    ]
    with pytest.raises(RequestError, match=r"#/format/tags/1/content/json_schema"):
        checked.compile({"type": "triggered_tags", "triggers": ["<tool_call>"], "tags": tags})


def test_structural_tag_is_bounded() -> None:
    """A nested format ends at a depth, not in a recursion."""
    form: Format = {"type": "any_text"}
    for _ in range(40):
        form = {"type": "optional", "content": form}
    with pytest.raises(TagFormatError, match="nested too deeply"):
        parse_structural_tag({"type": "structural_tag", "format": form})


def test_structural_tag_may_be_larger_than_other_guides(checked: Checked) -> None:
    """The schemas of many tools fit; there is a bound all the same."""
    schema = {"type": "object", "description": "x" * 100_000}
    checked.compile({"type": "json_schema", "json_schema": schema})
    with pytest.raises(RequestError, match="at most 262144"):
        checked.compile({"type": "json_schema", "json_schema": {**schema, "title": "x" * 200_000}})


_FREE = {"type": "any_text"}
_MAYBE = {"type": "optional", "content": _OBJECT}


def _nested(depth: int) -> Format:
    form: Format = _MAYBE
    for _ in range(depth):
        form = {"type": "tags_with_separator", "tags": [{"begin": "", "content": form, "end": ""}], "separator": ""}
    return form


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    [
        {"type": "sequence", "elements": [_MAYBE] * 900},
        _nested(12),
        {"type": "regex", "pattern": "((a{1,100}){1,100}){1,100}"},
        {
            "type": "tag",
            "begin": "<tool_call>",
            "content": {"type": "regex", "pattern": "(a|b)*a(a|b){500}"},
            "end": "</tool_call>",
        },
        {"type": "any_text", "excludes": ["x" * 30_000, "y" * 30_000]},
        _call("x" * 30_000, "y"),
        {
            "type": "or",
            "elements": [
                {"type": "sequence", "elements": [_FREE, {"type": "const_string", "value": f"a{number}"}, _OBJECT]}
                for number in range(400)
            ],
        },
    ],
)
def test_structural_tag_that_costs_too_much_costs_its_own_request(checked: Checked, form: Format) -> None:
    """It compiles in a moment, and ends by itself where it can no longer be followed."""
    began = time.thread_time()
    guide = checked.compile(form).start(frozenset({NO_TEXT}))
    assert time.thread_time() - began < 10
    rng = seeded(0)
    for _ in range(40):
        began = time.thread_time()
        choices = allowed(guide)[0] - {NO_TEXT}
        assert time.thread_time() - began < 2
        if not choices:
            assert guide.is_finished or guide.failure is not None
            break
        guide.advance(rng.choice(sorted(choices)))
