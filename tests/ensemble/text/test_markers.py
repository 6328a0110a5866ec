"""Markers against whole decodings of the other tokens, for every family of tokenizers and any chunking."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from tests import decoding
from tests.scripts import SCRIPTS
from tests.tokenizer_zoo import TEXTS, ZOO, tokenizer_of
from trident_ensemble.text.anchors import anchor_table, context_ids
from trident_ensemble.text.detokenizer import Detokenizer, make_detokenizer
from trident_ensemble.text.markers import HidingDetokenizer, HidingTable, MarkerReader

#: Characters of many scripts.
ALPHABET = "".join(SCRIPTS.values())
MARKERS = ("<think>", "<|late|>", "</s>", "é日")


@cache
def _parts(family: str) -> tuple[Detokenizer, bytes]:
    tokenizer = tokenizer_of(family)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer.save(str(path))
        return make_detokenizer(tokenizer), anchor_table(path, tokenizer.get_vocab_size()).tobytes()


def _read(
    family: str, ids: list[int], markers: frozenset[int], sizes: list[int], *, skip: bool
) -> tuple[str, list[tuple[int, int]]]:
    """The text of a stream in chunks of these sizes and its markers, by characters of the whole."""
    detokenizer, table = _parts(family)
    reader, text, found, sent = MarkerReader(detokenizer, table), "", [], 0
    for size in [*sizes, len(ids)]:
        context = context_ids(HidingTable(table, markers), ids, sent, skip_special_tokens=skip)
        is_last = sent + size >= len(ids)
        piece, places = reader.read(
            context, ids[sent : sent + size], markers, is_last=is_last, skip_special_tokens=skip
        )
        found += [(len(text) + place, token_id) for place, token_id in places]
        text += piece
        sent += size
        if is_last:
            break
    return text, found


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(list(ZOO)),
    st.lists(st.sampled_from(TEXTS) | st.text(ALPHABET, max_size=8), max_size=4).map("".join),
    st.lists(st.tuples(st.integers(0, 200), st.sampled_from(MARKERS)), max_size=6),
    st.sets(st.sampled_from(MARKERS), min_size=1),
    st.lists(st.integers(1, 9), max_size=30),
    st.booleans(),
)
def test_markers_are_where_whole_decodings_say(  # noqa: PLR0917
    family: str, text: str, put: list[tuple[int, str]], wanted: set[str], sizes: list[int], skip: bool
) -> None:
    tokenizer = tokenizer_of(family)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    for place, marker in put:
        ids.insert(place, tokenizer.get_vocab()[marker])
    markers = frozenset(tokenizer.get_vocab()[marker] for marker in wanted)
    others = [token_id for token_id in ids if token_id not in markers]
    whole = decoding.decode(family, others, skip=skip)
    expected = []
    for index, token_id in enumerate(ids):
        if token_id in markers:
            before = [other for other in ids[:index] if other not in markers]
            expected.append((len(decoding.settled(family, before, skip=skip)), token_id))
    assert _read(family, ids, markers, sizes, skip=skip) == (whole, expected)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(ZOO)), st.data(), st.lists(st.integers(1, 9), max_size=30), st.booleans())
def test_markers_any_ids_at_all_are_cut_alike(family: str, data: st.DataObject, sizes: list[int], skip: bool) -> None:
    """The core, which matches stop strings token by token, and postprocessing see one text."""
    detokenizer, table = _parts(family)
    ids = data.draw(st.lists(st.integers(0, len(table) - 1), max_size=60))
    markers = frozenset(data.draw(st.lists(st.sampled_from(ids or [0]), max_size=4)))
    hiding, hiding_table = HidingDetokenizer(detokenizer, markers), HidingTable(table, markers)
    text, ends = "", []
    for index, token_id in enumerate(ids):
        if token_id in markers:
            ends.append((len(text), token_id))
        context = context_ids(hiding_table, ids, index, skip_special_tokens=skip)
        text += hiding.text(context, [token_id], is_last=index + 1 == len(ids), skip_special_tokens=skip)
    assert _read(family, ids, markers, [1] * len(ids), skip=skip) == _read(family, ids, markers, sizes, skip=skip)
    assert _read(family, ids, markers, sizes, skip=skip) == (text, ends)
