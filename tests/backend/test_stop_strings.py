"""Stop strings against a search through whole decodings, for every family of tokenizers and any chunking."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scripts import SCRIPTS
from tests.tokenizer_zoo import HIDDEN, TEXTS, ZOO, tokenizer_of
from trident_backend.stop_strings import StopStrings
from trident_ensemble.anchors import BYTE_LEVEL_ALPHABET, anchor_table, context_start, is_byte_token
from trident_ensemble.chunk_header import ALL
from trident_ensemble.detokenizer import Detokenizer, make_detokenizer

BYTE_FALLBACK = ("llama_2", "gemma", "two_spaces", "metaspace_bpe")


@cache
def parts(family: str) -> tuple[Detokenizer, bytes]:
    tokenizer = tokenizer_of(family)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer.save(str(path))
        return make_detokenizer(tokenizer), anchor_table(path, tokenizer.get_vocab_size()).tobytes()


def encode(family: str, text: str) -> list[int]:
    ids: list[int] = tokenizer_of(family).encode(text, add_special_tokens=False).ids
    return ids


def spell(text: str) -> list[int]:
    """One token a byte, of "byte_level_bytes"."""
    characters = {byte: character for character, byte in BYTE_LEVEL_ALPHABET.items()}
    vocabulary = tokenizer_of("byte_level_bytes").get_vocab()
    return [vocabulary[characters[byte]] for byte in text.encode()]


@dataclass(frozen=True)
class Case:
    """One request and the output that its model would give."""

    family: str
    output_ids: list[int]
    words: tuple[str, ...]
    echoed_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    include_stop: bool = False
    skip: bool = True

    @property
    def ids(self) -> list[int]:
        return [*self.echoed_ids, *self.output_ids]

    def decode(self, token_ids: Sequence[int]) -> str:
        text: str = tokenizer_of(self.family).decode(list(token_ids), skip_special_tokens=self.skip)
        return text

    def settled(self, num_tokens: int) -> str:
        """What no further token can change."""
        ids = self.ids[:num_tokens]
        if self.family in BYTE_FALLBACK:
            while ids and self._is_undecided(tokenizer_of(self.family).id_to_token(ids[-1])):
                ids.pop()
            return self.decode(ids)
        texts = [self.decode(ids + more) for more in _continuations(self.family)]
        return os.path.commonprefix(texts)  # noqa: RUF071 (characters, not folders)

    def _is_undecided(self, token: str | None) -> bool:
        return token is None or is_byte_token(token) or (self.skip and token in HIDDEN)

    @property
    def begin(self) -> int:
        """Where the output's text begins."""
        return len(self.settled(len(self.echoed_ids)))

    def expected(self) -> tuple[str, int, int] | None:
        """The stop string, the number of output tokens it takes, and where it begins; None without one.

        One token more than there are: it is found only when no token comes any more.
        """
        ends = [len(self.settled(len(self.echoed_ids) + count)) for count in range(1, len(self.output_ids) + 1)]
        text = self.decode(self.ids)
        for end in range(self.begin + 1, len(text) + 1):
            for word in sorted(self.words, key=len, reverse=True):
                if end - len(word) < self.begin or not text[:end].endswith(word):
                    continue
                count = next((count for count, settled in enumerate(ends, 1) if settled >= end), len(ends) + 1)
                if min(count, len(ends)) > self.min_tokens:
                    return word, count, end - len(word)
        return None

    def num_safe_tokens(self, num_tokens: int) -> int:
        """How many of so many tokens may leave when no stop string is complete."""
        text = self.settled(num_tokens)
        tail = text[self.begin :]
        held = max(
            (size for word in self.words for size in range(1, len(word)) if tail.endswith(word[:size])), default=0
        )
        safe = range(len(self.echoed_ids), num_tokens + 1)
        return max(count for count in safe if len(self.settled(count)) <= len(text) - held)

    def make(self, detokenizer: Detokenizer | None = None) -> StopStrings:
        made, anchors = parts(self.family)
        return StopStrings(
            detokenizer or made,
            anchors,
            self.words,
            echoed_ids=self.echoed_ids,
            min_tokens=self.min_tokens,
            include_stop=self.include_stop,
            skip_special_tokens=self.skip,
        )


@cache
def _continuations(family: str) -> list[list[int]]:
    """Enough to tell which characters at the end of a decoding may still become others."""
    vocabulary = tokenizer_of(family).get_vocab()
    spelled = {byte: character for character, byte in BYTE_LEVEL_ALPHABET.items()}
    found = [[], [vocabulary["a"]] if "a" in vocabulary else [vocabulary["one"]]]
    if family.startswith("byte_level"):
        low, *others = (vocabulary[spelled[byte]] for byte in (0x80, 0x90, 0xA0))
        found += [[first, *[low] * count] for first in (low, *others) for count in range(3)]
    return found


class Client:
    """Gets what may leave, through the detokenizer, in chunks."""

    def __init__(self, case: Case, stop_strings: StopStrings) -> None:
        self.case, self.stop_strings = case, stop_strings
        self.num_sent = 0
        self.text = ""

    def receive(self, count: int) -> None:
        self.text += self._decode(count, is_last=False)
        self.num_sent = count
        assert len(self.text) == self.stop_strings.text_end(count)

    def receive_last(self, num_tokens: int) -> None:
        text = self._decode(num_tokens, is_last=True)
        if self.stop_strings.num_characters != ALL:
            num_characters = self.stop_strings.num_characters - self.stop_strings.text_end(self.num_sent)
            assert num_characters >= 0
            text = text[:num_characters]
        self.text += text

    def _decode(self, count: int, *, is_last: bool) -> str:
        detokenizer, anchors = parts(self.case.family)
        ids = self.case.ids
        context_ids = ids[context_start(anchors, ids, self.num_sent) : self.num_sent]
        new_ids = ids[self.num_sent : count]
        return detokenizer.text(context_ids, new_ids, is_last=is_last, skip_special_tokens=self.case.skip)


def check(case: Case, wants_chunk: Sequence[bool]) -> str | None:
    """Run a request as the core does; every step of it against the reference. The stop string that ended it."""
    expected = case.expected()
    stop_strings = case.make()
    client = Client(case, stop_strings)
    safe = stop_strings.num_safe_tokens
    assert safe == len(case.echoed_ids)
    found = None
    count = 0
    for count, token_id in enumerate(case.output_ids, 1):
        assert stop_strings.num_characters == ALL
        found = stop_strings.append(token_id)
        assert stop_strings.num_safe_tokens >= safe, "what may leave may leave for ever"
        safe = stop_strings.num_safe_tokens
        num_tokens = len(case.echoed_ids) + count
        if found is not None:
            assert safe == num_tokens
            break
        assert safe == case.num_safe_tokens(num_tokens), "no more and no less is held back"
        assert stop_strings.text_end(num_tokens) == len(case.settled(num_tokens))
        if wants_chunk[count % len(wants_chunk)] and safe > client.num_sent:
            client.receive(safe)
    else:
        found = stop_strings.finish()
        count += 1
    num_tokens = min(len(case.ids), len(case.echoed_ids) + count)
    assert stop_strings.num_safe_tokens == num_tokens
    client.receive_last(num_tokens)
    text = case.decode(case.ids)
    if expected is None:
        assert found is None
        assert stop_strings.num_characters == ALL
        assert client.text == text
        return None
    word, num_needed, begin = expected
    assert (found, count) == (word, num_needed)
    assert client.text == text[: begin + len(word) if case.include_stop else begin]
    return found


@st.composite
def outputs(draw: st.DrawFn, family: str) -> list[int]:
    """Pieces of real text, letters that repeat, and any ids."""
    texts = st.one_of(
        st.sampled_from([*TEXTS, *SCRIPTS.values()]),
        st.text("abé ", max_size=12),
        st.sampled_from(["aaaaaaaa", "abababab", "日本日本", "one one one"]),
    )
    ids: list[int] = []
    for text in draw(st.lists(texts, min_size=1, max_size=3)):
        encoded = encode(family, text)
        begin = draw(st.integers(0, max(0, len(encoded) - 1)))
        ids += encoded[begin : begin + draw(st.integers(1, 10))]
        ids += draw(st.lists(st.integers(0, tokenizer_of(family).get_vocab_size() - 1), max_size=2))
    return ids


@st.composite
def cases(draw: st.DrawFn, family: str) -> Case:
    """Stop strings are mostly cut from the very text, at any characters, and often from one another."""
    output_ids = draw(outputs(family))
    echoed_ids = tuple(draw(st.just([]) | outputs(family)))
    skip = draw(st.booleans())
    text = Case(family, output_ids, (), echoed_ids, skip=skip).decode([*echoed_ids, *output_ids]) or "a"
    words: set[str] = set()
    for _ in range(draw(st.integers(1, 4))):
        source = draw(st.sampled_from([text, text, *words, "abaab", "never said"]))
        begin = draw(st.integers(0, len(source) - 1))
        word = source[begin : begin + draw(st.integers(1, 8))]
        words.add(word + draw(st.sampled_from(["", "", "", "a", "é"])))
    return Case(
        family,
        output_ids,
        tuple(sorted(words)),
        echoed_ids,
        min_tokens=draw(st.sampled_from([0, 0, 1, 3, 50])),
        include_stop=draw(st.booleans()),
        skip=skip,
    )


@pytest.mark.parametrize("family", ZOO)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_the_text_ends_at_the_first_stop_string_and_not_a_token_later(family: str, data: st.DataObject) -> None:
    check(data.draw(cases(family)), data.draw(st.lists(st.booleans(), min_size=1, max_size=8)))


@pytest.mark.parametrize("family", ZOO)
def test_a_stop_string_that_begins_and_ends_inside_of_tokens(family: str) -> None:
    ids = encode(family, "The trident has three prongs")
    text = Case(family, ids, ()).decode(ids)
    word = text[text.index("dent") : text.index("prongs") + 2]
    assert check(Case(family, ids, (word,)), [True]) == word


def test_of_several_the_first_to_end_counts_and_of_these_the_longest() -> None:
    ids = encode("byte_level_bpe", "abcdefg")
    for words, expected in [
        (("abcdef", "cd"), "cd"),
        (("d", "bcd", "cd"), "bcd"),
        (("ab", "abc"), "ab"),
        (("xyz", "fg", "g"), "fg"),
    ]:
        assert check(Case("byte_level_bpe", ids, words), [True]) == expected


def test_what_could_be_a_beginning_waits_and_leaves_when_it_is_none() -> None:
    ids = spell("aab.aabb")
    stop_strings = Case("byte_level_bytes", ids, ("aabb",)).make()
    held = []
    for count, token_id in enumerate(ids[:-1], 1):
        assert stop_strings.append(token_id) is None
        held.append(count - stop_strings.num_safe_tokens)
    assert held == [1, 2, 3, 0, 1, 2, 3]
    assert stop_strings.append(ids[-1]) == "aabb"
    assert stop_strings.num_characters == 4


def test_a_character_in_pieces_is_no_text_until_it_is_whole() -> None:
    ids = spell("x😀")
    stop_strings = Case("byte_level_bytes", ids, ("😀",)).make()
    assert [stop_strings.append(token_id) for token_id in ids] == [None, None, None, None, "😀"]
    assert stop_strings.num_characters == 1


def test_the_replacement_character_is_found_when_the_output_ends() -> None:
    ids = spell("x😀")[:-1]
    stop_strings = Case("byte_level_bytes", ids, ("\ufffd",)).make()
    assert [stop_strings.append(token_id) for token_id in ids] == [None] * 4
    assert stop_strings.finish() == "\ufffd"


def test_a_stop_string_in_the_echoed_prompt_or_across_its_end_does_not_count() -> None:
    prompt, output = (spell(text) for text in ("Q: ab", "babA:ab"))
    case = Case("byte_level_bytes", output, ("ab",), echoed_ids=tuple(prompt))
    assert check(case, [True]) == "ab"
    assert case.expected() == ("ab", 3, 6)


def test_a_stop_string_that_is_complete_too_early_is_text() -> None:
    ids = spell("xAByAB")
    assert Case("byte_level_bytes", ids, ("AB",), min_tokens=3).expected() == ("AB", 6, 4)
    assert check(Case("byte_level_bytes", ids, ("AB",), min_tokens=3), [True]) == "AB"
    assert check(Case("byte_level_bytes", ids, ("AB",), min_tokens=6), [True]) is None
    assert check(Case("byte_level_bytes", ids, ("AB",), min_tokens=2), [True]) == "AB"


def test_special_tokens_are_matched_only_where_they_are_text() -> None:
    ids = [*encode("gemma", "one"), tokenizer_of("gemma").get_vocab()["<|late|>"], *encode("gemma", "two")]
    assert check(Case("gemma", ids, ("|late",), skip=False), [True]) == "|late"
    assert check(Case("gemma", ids, ("|late",), skip=True), [True]) is None
    assert check(Case("gemma", ids, ("onetwo",), skip=True), [True]) == "onetwo"


class Counting:
    """Counts the ids that are decoded."""

    def __init__(self, family: str) -> None:
        self._detokenizer, _ = parts(family)
        self.num_decoded = 0

    def text(
        self, context_ids: Sequence[int], new_ids: Sequence[int], *, is_last: bool, skip_special_tokens: bool = True
    ) -> str:
        text = self._detokenizer.text(context_ids, new_ids, is_last=is_last, skip_special_tokens=skip_special_tokens)
        self.num_decoded += len(new_ids) + (len(context_ids) if text else 0)
        return text


@pytest.mark.parametrize("family", ["byte_level_bytes", "byte_level_bpe", "llama_2", "wordpiece"])
def test_a_token_costs_what_it_adds_not_what_was_said(family: str) -> None:
    """A run of byte tokens is decoded once, when it ends; a byte that continues no character is not kept for ever."""
    streams = [encode(family, (SCRIPTS["tibetan"] + SCRIPTS["han"] + "the prongs ") * 20)]
    if family == "byte_level_bytes":
        streams.append(spell("é")[1:] * 1000)
    for ids in streams:
        detokenizer = Counting(family)
        stop_strings = Case(family, ids, ("never said", "prongs!")).make(detokenizer)
        for token_id in ids:
            stop_strings.append(token_id)
        stop_strings.finish()
        assert detokenizer.num_decoded <= 4 * len(ids)


def test_forks_know_nothing_of_each_other() -> None:
    """Two outputs of one prompt, token by token in turn, as each alone."""
    family = "byte_level_bytes"
    detokenizer, anchors = parts(family)
    first = StopStrings(detokenizer, anchors, ("abc", "zz"), echoed_ids=spell("an a"))
    second = first.fork()
    outputs = {first: "xab", second: "bcabzz"}
    seen = []
    for index in range(6):
        for which, (strings, text) in enumerate(outputs.items()):
            if index < len(text):
                found = strings.append(spell(text)[index])
                seen.append((which, text[: index + 1], found))
    alone = []
    for index in range(6):
        for which, text in enumerate(outputs.values()):
            if index < len(text):
                strings = StopStrings(detokenizer, anchors, ("abc", "zz"), echoed_ids=spell("an a"))
                found = [strings.append(token_id) for token_id in spell(text[: index + 1])][-1]
                alone.append((which, text[: index + 1], found))
    assert seen == alone
    assert [found for which, _, found in seen if which == 1] == [None, None, None, None, None, "zz"]
    assert first.num_safe_tokens < second.num_safe_tokens
