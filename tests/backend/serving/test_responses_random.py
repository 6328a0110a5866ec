"""The thread that answers, against every history that the loop may tell it: one final response for each request, and
the text of each sequence whole."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backend.serving.test_responses import Reader
from tests.fakes.core import SPEC
from tests.fakes.serving import Speller, context, spell, until
from trident_backend.requests.request import Request, parse_request
from trident_backend.scheduling.outcomes import last_look
from trident_backend.sequences.choices import TokenLogProbs
from trident_backend.sequences.sequence import FinishReason, Sequence
from trident_backend.serving.answering import AnsweringThread
from trident_backend.serving.events import Command, TokenEvent
from trident_backend.serving.output_tensors import OutputTensorBuilder
from trident_backend.serving.responses import Response
from trident_ensemble.contract.errors import CancelledError, DrainingError, EngineError
from trident_ensemble.contract.settings import CoreSettings

SETTINGS = CoreSettings(pause_after_ms=1, abandon_after_ms=3, stream_interval_ms=0)


@dataclass(frozen=True)
class Script:
    """What one sequence is to generate, and how it is to end; None if it never does."""

    token_ids: list[int]
    end: FinishReason | None


class ScriptedLoop:
    """Plays the engine loop's part: tells tokens as the scripts say, and obeys."""

    def __init__(self) -> None:
        self.streams: AnsweringThread | None = None
        self.closed: list[Request] = []
        self.died: list[BaseException] = []

    def tell(self, command: Command, sequence: Sequence) -> None:
        """Called on the thread that answers."""
        if command is Command.ABORT and sequence.finish_reason is None:
            self.end(sequence, FinishReason.CANCELLED, CancelledError("gone"))

    def say(self, sequence: Sequence, token_ids: list[int]) -> None:
        for token_id in token_ids:
            if sequence.finish_reason is not None:
                return
            sequence.token_ids.append(token_id)
            if sequence.sampling.log_probs:
                sequence.log_probs.append(TokenLogProbs(-1.0 - token_id))
            if sequence.stop_strings is None:
                self.emit(sequence, 1)
                continue
            word = sequence.stop_strings.append(token_id)
            if word is not None:
                sequence.finish_reason, sequence.stop_reason = FinishReason.STOP, word
            self.emit(sequence, 1)

    def end(self, sequence: Sequence, reason: FinishReason, error: EngineError | CancelledError | None = None) -> None:
        if sequence.finish_reason is None:
            sequence.error = error
            sequence.finish_reason = reason if error is not None else last_look(sequence, reason)
            self.emit(sequence, 0)

    def emit(self, sequence: Sequence, num_tokens: int) -> None:
        assert self.streams is not None
        num_safe = None if sequence.stop_strings is None else sequence.stop_strings.num_safe_tokens
        self.streams.emit(
            [TokenEvent(sequence.sequence_id, num_tokens, sequence.finish_reason, sequence.error, num_safe)]
        )


class MoodyReader(Reader):
    """Stops to acknowledge after so many chunks."""

    def __init__(self, num_chunks: int, *, cancelled: bool) -> None:
        super().__init__()
        self.num_chunks = num_chunks
        self.cancelled = cancelled

    def send(self, response: Response) -> None:
        acknowledge = self.postprocessing.acknowledge
        if len(self.chunks) >= self.num_chunks:
            self.postprocessing.acknowledge = lambda *_: None  # type: ignore[method-assign]
        super().send(response)
        self.postprocessing.acknowledge = acknowledge  # type: ignore[method-assign]


ENDS = (FinishReason.LENGTH, FinishReason.LENGTH, FinishReason.EOS, FinishReason.CANCELLED, FinishReason.ERROR, None)


@st.composite
def _asked(draw: st.DrawFn) -> tuple[dict[str, Any], list[Script], MoodyReader]:
    num_sequences = draw(st.integers(1, 3))
    words = draw(st.lists(st.text("abcd", min_size=1, max_size=4), max_size=2))
    fields = {
        "input_ids": draw(st.lists(st.integers(0, 96), min_size=1, max_size=3)),
        "max_tokens": 30,
        "num_return_sequences": num_sequences,
        "stream": draw(st.booleans()),
        "flow_control": draw(st.booleans()),
        "echo": draw(st.booleans()),
        "return_log_probs": draw(st.booleans()),
        "stop_words": [word.encode() for word in words],
    }
    scripts = [
        Script(draw(st.lists(st.integers(0, 96), max_size=8)), draw(st.sampled_from(ENDS)))
        for _ in range(num_sequences)
    ]
    reader = MoodyReader(draw(st.sampled_from([99, 99, 99, 0, 2])), cancelled=draw(st.integers(0, 9)) == 0)
    return fields, scripts, reader


def _scripted() -> tuple[ScriptedLoop, AnsweringThread]:
    loop = ScriptedLoop()
    streams = AnsweringThread(
        SETTINGS,
        32,
        bytes([1]) * SPEC.vocab_size,
        OutputTensorBuilder(SPEC.block_size, 0, Speller()),
        clock=time.monotonic,
        tell=loop.tell,
        on_closed=loop.closed.append,
        on_fatal=loop.died.append,
    )
    loop.streams = streams
    streams.start()
    return loop, streams


@pytest.mark.parametrize("streaming", [False, True])
def test_responses_random_a_failure_of_one_sequence_is_told_at_once_and_ends_the_others(streaming: bool) -> None:
    loop, streams = _scripted()
    fields = {"input_ids": [1], "max_tokens": 9, "num_return_sequences": 3, "stream": streaming}
    request = parse_request(itertools.count(1), fields, context(), 0.0)
    reader = Reader()
    streams.open(request, reader)
    first, second, third = request.sequences
    for sequence in request.sequences:
        loop.say(sequence, [1, 2])
    loop.end(third, FinishReason.LENGTH)
    loop.end(second, FinishReason.ERROR, EngineError("failed"))
    assert reader.done.wait(60)
    assert [str(error) for error in reader.errors] == ["failed"]
    until(lambda: first.finish_reason is FinishReason.CANCELLED)
    streams.stop(DrainingError("the end"))
    assert reader.num_finals == 1
    assert not loop.died


def test_responses_random_log_probs_of_a_stream_stand_beside_their_tokens_also_behind_an_echo() -> None:
    loop, streams = _scripted()
    fields = {"input_ids": [1, 2, 3, 4], "max_tokens": 9, "stream": True, "echo": True, "return_log_probs": True}
    request = parse_request(itertools.count(1), fields, context(), 0.0)
    reader = Reader()
    streams.open(request, reader)
    for count, token_id in enumerate((5, 6, 7), 1):
        loop.say(request.first, [token_id])
        until(lambda count=count: len(reader.chunks) == count)  # type: ignore[misc]
    loop.end(request.first, FinishReason.LENGTH)
    assert reader.done.wait(60)
    streams.stop(DrainingError("the end"))
    assert [chunk.output_ids[0].tolist() for chunk in reader.chunks] == [[1, 2, 3, 4, 5], [6], [7], []]
    assert reader.log_probs[0] == [-6.0, -7.0, -8.0]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.lists(_asked(), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_responses_random_every_history_ends_once_and_whole(
    asked: list[tuple[dict[str, Any], list[Script], MoodyReader]], rng: Any
) -> None:
    loop, streams = _scripted()
    sequence_ids = itertools.count(1)
    requests = [parse_request(sequence_ids, fields, context(), 0.0) for fields, _, _ in asked]
    moves = []
    for request, (_, scripts, reader) in zip(requests, asked, strict=True):
        streams.open(request, reader)
        for sequence, script in zip(request.sequences, scripts, strict=True):
            moves.append([(sequence, token_id) for token_id in script.token_ids] + [(sequence, script.end)])
    while moves:  # token by token, in any order of the sequences
        moves = [rest for rest in moves if rest]
        for sequence, move in [rng.choice(moves).pop(0)] if moves else []:
            if isinstance(move, FinishReason):
                loop.end(sequence, move, EngineError("failed") if move is FinishReason.ERROR else None)
            elif move is not None:
                loop.say(sequence, [move])
    if rng.random() < 0.2:
        time.sleep(0.03)  # in which unread streams are abandoned
    streams.stop(DrainingError("the end"))
    assert not loop.died
    assert not streams._pump.num_streams, "nothing is kept of what was answered"
    assert sorted(map(id, loop.closed)) == sorted(map(id, requests))
    for request, (fields, scripts, reader) in zip(requests, asked, strict=True):
        assert reader.num_finals == 1
        assert not reader.asked_after_final
        _check(request, fields, scripts, reader)


def _check(request: Request, fields: dict[str, Any], scripts: list[Script], reader: MoodyReader) -> None:
    words = [word.decode() for word in fields["stop_words"]]
    echoed = fields["input_ids"] if fields["echo"] else []
    ended_well = True
    for index, (sequence, script) in enumerate(zip(request.sequences, scripts, strict=True)):
        whole = "".join(map(spell, script.token_ids))
        begins = {whole.find(word): word for word in words if word in whole}
        ended_well &= bool(begins) or script.end not in (FinishReason.ERROR, None)
        sent = reader.texts.get(index, "")[3 * len(echoed) :]
        # However much came through: nothing from a stop string on, and nothing that is not the sequence's.
        assert whole.startswith(sent)
        assert not any(word in sent for word in words)
        if index in reader.reasons and not begins:
            assert sent == whole
            assert reader.ids[index] == echoed + script.token_ids
            assert script.end is not None
            assert reader.reasons[index] == script.end.value
        elif index in reader.reasons:
            assert reader.reasons[index] == "stop"
            assert whole[len(sent) :].startswith(sequence.stop_reason)
        if fields["return_log_probs"] and index in reader.ids:
            own = reader.ids[index][len(echoed) :]
            # Rows of one response are as long as the longest.
            assert reader.log_probs[index][: len(own)] == [-1.0 - token_id for token_id in own]
            assert not any(reader.log_probs[index][len(own) :])
    if reader.errors:
        assert all(sequence.finish_reason is not None for sequence in request.sequences), "nobody waits for them"
        assert isinstance(reader.errors[0], EngineError | CancelledError | DrainingError)
        if isinstance(reader.errors[0], DrainingError):
            assert not ended_well or (fields["stream"] and fields["flow_control"])
    else:
        assert ended_well
        assert sorted(reader.reasons) == list(range(fields["num_return_sequences"]))
