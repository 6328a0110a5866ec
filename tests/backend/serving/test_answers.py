"""What one stream has to send, against the ids and the text of its output alone."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.fakes.core import Client
from tests.fakes.serving import context
from tests.tokenizer_zoo import tokenizer_of
from trident_backend.requests.request import parse_request
from trident_backend.serving.answers import Answer
from trident_backend.serving.events import TokenEvent
from trident_ensemble.contract.settings import CoreSettings
from trident_ensemble.text.anchors import anchor_table
from trident_ensemble.text.detokenizer import make_detokenizer


@pytest.fixture(scope="module")
def anchors(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file: Path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer = tokenizer_of("byte_level_bpe")
    tokenizer.save(str(file))
    return anchor_table(file, tokenizer.get_vocab_size()).tobytes()


@hypothesis_settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text("aé你🙂", min_size=1, max_size=8), data=st.data(), echo=st.booleans())
def test_answers_chunks_of_a_prompt_cut_within_a_character_decode_as_the_output_alone(
    anchors: bytes, text: str, data: st.DataObject, *, echo: bool
) -> None:
    tokenizer = tokenizer_of("byte_level_bpe")
    ids: list[int] = tokenizer.encode("a" + text).ids
    num_prompt_tokens = data.draw(st.integers(1, len(ids)))
    fields: dict[str, Any] = {"input_ids": [1], "max_tokens": 40, "stream": True, "echo": echo}
    request = parse_request(itertools.count(1), fields, context(), 0.0)
    sequence = request.first
    sequence.token_ids[:] = ids[:num_prompt_tokens]
    sequence.num_prompt_tokens = num_prompt_tokens
    (stream,) = Answer(request, Client(), CoreSettings()).streams
    detokenizer, whole = make_detokenizer(tokenizer), ""
    sent: list[int] = []
    while len(sequence.token_ids) < len(ids):
        num_tokens = data.draw(st.integers(1, len(ids) - len(sequence.token_ids)))
        sequence.token_ids += ids[len(sequence.token_ids) :][:num_tokens]
        stream.take(TokenEvent(sequence.sequence_id, num_tokens, None))
        before = stream.context_ids(anchors)
        new, part, _ = stream.send(0.0)
        assert part.num_ids == len(new)
        assert before == sent[len(sent) - len(before) :], "no id of a prompt that is not echoed"
        sent += new
        whole += detokenizer.text(before, new, is_last=len(sequence.token_ids) == len(ids))
    assert sent == ids[0 if echo else num_prompt_tokens :] or num_prompt_tokens == len(ids)
    assert whole == tokenizer.decode(sent)


def test_answers_nothing_is_taken_that_no_event_has_told_of() -> None:
    """The engine loop appends to the sequence's ids at any time."""
    fields: dict[str, Any] = {"input_ids": [1, 2], "max_tokens": 40, "stream": True}
    request = parse_request(itertools.count(1), fields, context(), 0.0)
    (stream,) = Answer(request, Client(), CoreSettings()).streams
    request.first.token_ids += [5, 6, 7]
    assert not stream.is_held
    stream.take(TokenEvent(1, 2, None))
    assert stream.send(0.0)[0] == [5, 6]
    assert not stream.is_held
