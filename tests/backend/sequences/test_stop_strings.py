"""Stop strings against a search through whole decodings, for every family of tokenizers and any chunking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import decoding
from tests.scripts import SCRIPTS
from tests.tokenizer_zoo import HIDDEN, TEXTS, ZOO, tokenizer_of
from trident_backend.sequences.stop_strings import StopStrings
from trident_ensemble.contract.chunk_header import ALL
from trident_ensemble.text.anchors import BYTE_LEVEL_ALPHABET, anchor_table, context_ids
from trident_ensemble.text.detokenizer import Detokenizer, make_detokenizer
from trident_ensemble.text.special_tokens import SpecialTokens, special_tokens_of


@cache
def parts(family: str) -> tuple[Detokenizer, bytes]:
    tokenizer = tokenizer_of(family)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer.save(str(path))
        return make_detokenizer(tokenizer), anchor_table(path, tokenizer.get_vocab_size()).tobytes()


@cache
def special_of(family: str) -> SpecialTokens:
    return special_tokens_of(tokenizer_of(family))


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
        return decoding.decode(self.family, list(token_ids), skip=self.skip)

    def settled(self, num_tokens: int) -> str:
        """What no further token can change."""
        return decoding.settled(self.family, self.ids[:num_tokens], skip=self.skip)

    @property
    def begin(self) -> int:
        """Where the output's text begins."""
        return len(self.settled(len(self.echoed_ids)))

    def expected(self) -> tuple[str, int, str] | None:
        """The stop string, the number of output tokens it takes, and the text; None without one.

        One token more than there are: it is found only when no token comes any more.
        """
        ends = [len(self.settled(len(self.echoed_ids) + count)) for count in range(1, len(self.output_ids) + 1)]
        text = self.decode(self.ids)
        found = []
        for word in self.words:
            for begin in range(self.begin, len(text)):
                end = begin + len(word)
                count = next((count for count, settled in enumerate(ends, 1) if settled >= end), len(ends) + 1)
                if text[begin:end] == word and min(count, len(ends)) > self.min_tokens:
                    found.append((count, end, 0, -len(word), word, text[: end if self.include_stop else begin]))
        if self.skip:
            found += [match for word in self.mixed for match in self.expected_with_special(word)]
        if not found:
            return None
        count, _, _, _, word, text = min(found)
        return word, count, text

    @property
    def mixed(self) -> list[str]:
        """The stop strings that hold a special token's text, and more; its text alone is a matter of its id."""
        tokens = [text for token in HIDDEN for text in (token, token.replace("▁", " "), token.replace("▁", ""))]
        return [word for word in self.words if any(token in word and token != word for token in tokens)]

    def expected_with_special(self, word: str) -> list[tuple[int, int, int, int, str, str]]:
        """Of one stop string, in the text that has special tokens, which must be in it whole; as `expected` sorts."""
        spelled = replace(self, skip=False)
        num_echoed = len(self.echoed_ids)
        counts = range(num_echoed, len(self.ids) + 1)
        shown, ends = ([len(case.settled(count)) for count in counts] for case in (self, spelled))
        special = {
            # Its text may be shorter than its name: decoding may take something away.
            count: (max(ends[count - 1], ends[count] - len(token)), ends[count])
            for count, token_id in enumerate(self.output_ids, 1)
            if (token := tokenizer_of(self.family).id_to_token(token_id)) in HIDDEN
        }
        text = spelled.decode(self.ids)
        found = []
        for begin in range(ends[0], len(text)):
            end = begin + len(word)
            whole = [begin <= first and last <= end for first, last in special.values()]
            split = [first < place < last for first, last in special.values() for place in (begin, end)]
            if text[begin:end] != word or not any(whole) or any(split):
                continue
            last = next((count for count, settled in enumerate(ends) if settled >= end), len(ends))
            if min(last, len(self.output_ids)) <= self.min_tokens:
                continue
            if last == len(ends):
                until = len(self.decode(self.ids)) - (len(text) - end)
            elif last in special:
                until = len(self.decode(self.ids[: num_echoed + last]))
            else:
                until = shown[last] - (ends[last] - end)
            first = next(count for count, settled in enumerate(ends) if settled > begin)
            if self.include_stop:
                kept = self.decode(self.ids[: num_echoed + last])[:until]
            elif first in special:
                # What had been undecided before the special token is decided by it, and may be in the stop string.
                before = self.decode(self.ids[: num_echoed + first - 1])
                undecided = len(before) - shown[first - 1]
                num_kept = undecided if begin >= special[first][0] else min(begin - ends[first - 1], undecided)
                kept = before[: shown[first - 1] + num_kept]
            else:
                kept = self.decode(self.ids)[: max(shown[first - 1], shown[first] - (ends[first] - begin))]
            found.append((last, until, int(last in special), -len(word), word, kept))
        return found

    def num_safe_tokens(self, num_tokens: int) -> int:
        """How many of so many tokens may leave when no stop string is complete."""
        text = self.settled(num_tokens)
        tail = text[self.begin :]
        held = max(
            (size for word in self.words for size in range(1, len(word)) if tail.endswith(word[:size])), default=0
        )
        safe = range(len(self.echoed_ids), num_tokens + 1)
        num_safe = max(count for count in safe if len(self.settled(count)) <= len(text) - held)
        return min(num_safe, self.num_safe_with_special(num_tokens)) if self.skip else num_safe

    def num_safe_with_special(self, num_tokens: int) -> int:
        """The same in the text that has special tokens, for stop strings that hold the text of one."""
        spelled = replace(self, skip=False)
        ends = {count: len(spelled.settled(count)) for count in range(len(self.echoed_ids), num_tokens + 1)}
        text = spelled.settled(num_tokens)[ends[len(self.echoed_ids)] :]
        inside = {
            place
            for count in range(len(self.echoed_ids) + 1, num_tokens + 1)
            if (token := tokenizer_of(self.family).id_to_token(self.ids[count - 1])) in HIDDEN
            for place in range(max(ends[count - 1], ends[count] - len(token)) + 1, ends[count])
        }
        held = max(
            (
                size
                for word in self.mixed
                for size in range(1, len(word))
                if text.endswith(word[:size]) and ends[num_tokens] - size not in inside
            ),
            default=0,
        )
        return max(count for count, end in ends.items() if end <= ends[num_tokens] - held)

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
            special=special_of(self.family),
        )


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
        text = self._decode(num_tokens - self.stop_strings.num_hidden_tail_tokens, is_last=True)
        if self.stop_strings.num_characters != ALL:
            num_characters = self.stop_strings.num_characters - self.stop_strings.text_end(self.num_sent)
            assert num_characters >= 0
            text = text[:num_characters]
        self.text += text

    def _decode(self, count: int, *, is_last: bool) -> str:
        detokenizer, anchors = parts(self.case.family)
        ids = self.case.ids
        context = context_ids(anchors, ids, self.num_sent, skip_special_tokens=self.case.skip)
        assert count >= self.num_sent
        new_ids = ids[self.num_sent : count]
        return detokenizer.text(context, new_ids, is_last=is_last, skip_special_tokens=self.case.skip)


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
    word, num_needed, text = expected
    assert (found, count) == (word, num_needed)
    assert client.text == text
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
        ids += draw(st.lists(st.sampled_from(sorted(special_of(family).by_id)), max_size=2))
    return ids


@st.composite
def cases(draw: st.DrawFn, family: str) -> Case:
    """Stop strings are mostly cut from the very text, at any characters, and often from one another."""
    output_ids = draw(outputs(family))
    echoed_ids = tuple(draw(st.just([]) | outputs(family)))
    skip = draw(st.booleans())
    text = decoding.decode(family, [*echoed_ids, *output_ids], skip=skip) or "a"
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


@pytest.mark.slow
@pytest.mark.parametrize("family", ZOO)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_stop_strings_the_text_ends_at_the_first_stop_string_and_not_a_token_later(
    family: str, data: st.DataObject
) -> None:
    check(data.draw(cases(family)), data.draw(st.lists(st.booleans(), min_size=1, max_size=8)))


@st.composite
def cases_with_special(draw: st.DrawFn, family: str) -> Case:
    """Stop strings are cut from the text that has special tokens, around some of them; special tokens are hidden."""
    special_ids = st.sampled_from(sorted(special_of(family).by_id))
    pieces = st.lists(outputs(family) | st.lists(special_ids, max_size=3), min_size=2, max_size=4)
    output_ids = [token_id for piece in draw(pieces) for token_id in piece[:6]]
    output_ids.insert(draw(st.integers(0, len(output_ids))), draw(special_ids))
    echoed_ids = tuple(draw(st.just([]) | st.lists(special_ids, max_size=2) | outputs(family)))
    text = decoding.decode(family, [*echoed_ids, *output_ids], skip=False)
    places = [place for place, character in enumerate(text) if character in "<>"]
    words = []
    for _ in range(draw(st.integers(1, 3))):
        begin, end = sorted(
            draw(st.sampled_from(places)) + draw(st.sampled_from([-3, -1, 0, 0, 0, 1, 2])) for _ in "be"
        )
        begin = max(0, begin)
        words.append(text[begin : max(begin, end) + 1] or "a")
    words += draw(st.lists(st.text("ab\ufffd ", min_size=1, max_size=3), max_size=1))
    return Case(
        family,
        output_ids,
        tuple(dict.fromkeys(words)),
        echoed_ids,
        min_tokens=draw(st.sampled_from([0, 0, 0, 2, 5])),
        include_stop=draw(st.booleans()),
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", ZOO)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_stop_strings_hidden_special_tokens_are_found_by_their_text(family: str, data: st.DataObject) -> None:
    """Among other text, as they would be if they were not hidden."""
    check(data.draw(cases_with_special(family)), data.draw(st.lists(st.booleans(), min_size=1, max_size=8)))


@pytest.mark.parametrize("family", ZOO)
def test_stop_strings_a_stop_string_that_begins_and_ends_inside_of_tokens(family: str) -> None:
    ids = encode(family, "The trident has three prongs")
    text = Case(family, ids, ()).decode(ids)
    word = text[text.index("dent") : text.index("prongs") + 2]
    assert check(Case(family, ids, (word,)), [True]) == word


def test_stop_strings_of_several_the_first_to_end_counts_and_of_these_the_longest() -> None:
    ids = encode("byte_level_bpe", "abcdefg")
    for words, expected in [
        (("abcdef", "cd"), "cd"),
        (("d", "bcd", "cd"), "bcd"),
        (("ab", "abc"), "ab"),
        (("xyz", "fg", "g"), "fg"),
    ]:
        assert check(Case("byte_level_bpe", ids, words), [True]) == expected


def test_stop_strings_what_could_be_a_beginning_waits_and_leaves_when_it_is_none() -> None:
    ids = spell("aab.aabb")
    stop_strings = Case("byte_level_bytes", ids, ("aabb",)).make()
    held = []
    for count, token_id in enumerate(ids[:-1], 1):
        assert stop_strings.append(token_id) is None
        held.append(count - stop_strings.num_safe_tokens)
    assert held == [1, 2, 3, 0, 1, 2, 3]
    assert stop_strings.append(ids[-1]) == "aabb"
    assert stop_strings.num_characters == 4


def test_stop_strings_a_character_in_pieces_is_no_text_until_it_is_whole() -> None:
    ids = spell("x😀")
    stop_strings = Case("byte_level_bytes", ids, ("😀",)).make()
    assert [stop_strings.append(token_id) for token_id in ids] == [None, None, None, None, "😀"]
    assert stop_strings.num_characters == 1


def test_stop_strings_the_replacement_character_is_found_when_the_output_ends() -> None:
    ids = spell("x😀")[:-1]
    stop_strings = Case("byte_level_bytes", ids, ("\ufffd",)).make()
    assert [stop_strings.append(token_id) for token_id in ids] == [None] * 4
    assert stop_strings.finish() == "\ufffd"


def test_stop_strings_a_stop_string_in_the_echoed_prompt_or_across_its_end_does_not_count() -> None:
    prompt, output = (spell(text) for text in ("Q: ab", "babA:ab"))
    case = Case("byte_level_bytes", output, ("ab",), echoed_ids=tuple(prompt))
    assert check(case, [True]) == "ab"
    assert case.expected() == ("ab", 3, "Q: abb")


def test_stop_strings_a_stop_string_that_is_complete_too_early_is_text() -> None:
    ids = spell("xAByAB")
    assert Case("byte_level_bytes", ids, ("AB",), min_tokens=3).expected() == ("AB", 6, "xABy")
    assert check(Case("byte_level_bytes", ids, ("AB",), min_tokens=3), [True]) == "AB"
    assert check(Case("byte_level_bytes", ids, ("AB",), min_tokens=6), [True]) is None
    assert check(Case("byte_level_bytes", ids, ("AB",), min_tokens=2), [True]) == "AB"


def test_stop_strings_special_tokens_are_matched_only_where_they_are_text() -> None:
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
def test_stop_strings_a_token_costs_what_it_adds_not_what_was_said(family: str) -> None:
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


def test_stop_strings_forks_know_nothing_of_each_other() -> None:
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
