"""How often a stream sends, in simulated time: never more often than asked, never later than due, and the same text."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.backend.serving.test_responses import Reader
from tests.fakes.core import SPEC, Clock
from tests.fakes.serving import Speller, context, spell
from trident_backend.requests.request import Request, parse_request
from trident_backend.sequences.sequence import FinishReason, Sequence
from trident_backend.serving.answers import Answer
from trident_backend.serving.client_watch import ClientWatch
from trident_backend.serving.events import Command, TokenEvent
from trident_backend.serving.output_tensors import OutputTensorBuilder
from trident_backend.serving.response_pump import ResponsePump
from trident_backend.serving.responses import Response
from trident_ensemble.acknowledgements import AcknowledgementTable
from trident_ensemble.contract.errors import CancelledError, RequestError
from trident_ensemble.contract.settings import CoreSettings


class TimedReader(Reader):
    """Notes when each chunk came, in ms, and of which sequence; acknowledges when it is told to."""

    def __init__(self, clock: Clock, *, acknowledges: bool = True) -> None:
        super().__init__()
        self.clock = clock
        self.acknowledges = acknowledges
        self.times: dict[int, list[int]] = {}
        self.sizes: list[int] = []
        self.owed: Response | None = None

    def send(self, response: Response) -> None:
        outputs = {spec.name: values.tolist() for spec, values in response.outputs}
        index = outputs.get("sequence_index", [0])[0]
        self.times.setdefault(index, []).append(round(self.clock.now * 1000))
        self.sizes.append(response.output_ids.size)
        acknowledge = self.postprocessing.acknowledge
        if not self.acknowledges:
            self.owed = response
            self.postprocessing.acknowledge = lambda *_: None  # type: ignore[method-assign]
        super().send(response)
        self.postprocessing.acknowledge = acknowledge  # type: ignore[method-assign]

    def acknowledge(self) -> None:
        if self.owed is not None:
            header = self.owed.header
            self.postprocessing.acknowledge(header.table_id, header.column, header.secret, header.number)
            self.owed = None


class Pumping:
    """What the answering thread does, when a test says so."""

    def __init__(self, settings: CoreSettings, table: AcknowledgementTable) -> None:
        self.clock = Clock()
        self.settings = settings
        self.told: list[tuple[Command, Sequence]] = []
        self.watch = ClientWatch(table, lambda command, sequence: self.told.append((command, sequence)))
        self.closed: list[Answer] = []
        builder = OutputTensorBuilder(SPEC.block_size, 0, Speller())
        self.pump = ResponsePump(bytes([1]) * SPEC.vocab_size, builder, self.watch, self.closed.append)
        self._ids = itertools.count(1)

    def open(self, reader: TimedReader, **fields: Any) -> Request:
        asked = {"input_ids": [1], "max_tokens": 40, "stream": True, **fields}
        request = parse_request(self._ids, asked, context(), 0.0)
        answer = Answer(request, reader, self.settings)
        self.pump.enter(answer)
        self.watch.enter(answer)
        return request

    def say(self, sequence: Sequence, *token_ids: int, end: FinishReason | None = None) -> None:
        """A step's event of one sequence; a stop string ends it."""
        if sequence.finish_reason is not None:
            return
        num_tokens = 0
        for token_id in token_ids:
            sequence.token_ids.append(token_id)
            num_tokens += 1
            if sequence.stop_strings is not None and (word := sequence.stop_strings.append(token_id)) is not None:
                sequence.finish_reason, sequence.stop_reason = FinishReason.STOP, word
                break
        if end is not None and sequence.finish_reason is None:
            word = None if sequence.stop_strings is None else sequence.stop_strings.finish()
            sequence.finish_reason, sequence.stop_reason = (end, "") if word is None else (FinishReason.STOP, word)
        num_safe = None if sequence.stop_strings is None else sequence.stop_strings.num_safe_tokens
        self.pump.take([TokenEvent(sequence.sequence_id, num_tokens, sequence.finish_reason, sequence.error, num_safe)])
        self.look()

    def look(self) -> None:
        self.pump.flush(self.watch.look(self.clock.now), self.clock.now)

    def pass_time(self, milliseconds: float) -> None:
        """Wake up as often as the thread would."""
        end = self.clock.now + milliseconds / 1000
        while True:
            wait_s = self._wait_s()
            if wait_s == 0:
                self.look()
                wait_s = self._wait_s()
                assert wait_s > 0, "nothing that is due is left lying"
            if self.clock.now + wait_s > end:
                break
            self.clock.now += wait_s
            self.look()
        self.clock.now = end

    def _wait_s(self) -> float:
        return min(self.watch.wait_s(self.clock.now), self.pump.wait_s(self.clock.now))

    def obey(self) -> None:
        """End the sequences that are no longer wanted, as the loop does."""
        for command, sequence in tuple(self.told):
            if command is Command.ABORT and sequence.finish_reason is None:
                sequence.finish_reason, sequence.error = FinishReason.CANCELLED, CancelledError("gone")
                self.pump.take([TokenEvent(sequence.sequence_id, 0, sequence.finish_reason, sequence.error)])
        self.look()


@contextmanager
def pumping(**settings: int) -> Iterator[Pumping]:
    table = AcknowledgementTable(16)
    try:
        yield Pumping(CoreSettings(**settings), table)  # type: ignore[arg-type]
    finally:
        table.close()


def test_stream_interval_tokens_that_come_within_the_interval_leave_together() -> None:
    with pumping(stream_interval_ms=20) as run:
        reader = TimedReader(run.clock)
        sequence = run.open(reader).first
        for _ in range(10):
            run.say(sequence, 7)
            run.pass_time(8)
        run.say(sequence, 7, end=FinishReason.LENGTH)
    assert reader.times[0] == [0, 20, 40, 60, 80, 80], "the first at once, the last with the end"
    assert reader.sizes == [1, 2, 2, 3, 2, 1]
    assert reader.ids[0] == [7] * 11


def test_stream_interval_a_stream_slower_than_its_interval_sends_each_token_at_once() -> None:
    with pumping(stream_interval_ms=20) as run:
        reader = TimedReader(run.clock)
        sequence = run.open(reader).first
        for _ in range(5):
            run.say(sequence, 7)
            run.pass_time(33)
    assert reader.times[0] == [0, 33, 66, 99, 132]


def test_stream_interval_a_request_s_own_interval_counts() -> None:
    with pumping(stream_interval_ms=20) as run:
        at_once, slow = TimedReader(run.clock), TimedReader(run.clock)
        sequences = run.open(at_once, stream_interval_ms=0).first, run.open(slow, stream_interval_ms=45).first
        for _ in range(10):
            for sequence in sequences:
                run.say(sequence, 7)
            run.pass_time(10)
    assert at_once.times[0] == list(range(0, 100, 10))
    assert slow.times[0] == [0, 45, 90]


def test_stream_interval_an_end_leaves_at_once() -> None:
    with pumping(stream_interval_ms=1000) as run:
        reader = TimedReader(run.clock)
        sequence = run.open(reader, stop_words=[spell(9).encode()]).first
        run.say(sequence, 7)
        run.pass_time(5)
        run.say(sequence, 8)
        run.pass_time(5)
        run.say(sequence, 9)
        assert reader.times[0] == [0, 10]
        assert reader.reasons[0] == "stop"
        assert reader.texts[0] == spell(7) + spell(8)


def test_stream_interval_what_a_stop_string_held_back_leaves_as_soon_as_it_is_refuted() -> None:
    with pumping(stream_interval_ms=1000) as run:
        reader = TimedReader(run.clock)
        sequence = run.open(reader, stop_words=[(spell(9) + "!").encode()]).first
        run.say(sequence, 7)
        run.pass_time(5)
        run.say(sequence, 8)
        run.pass_time(5)
        run.say(sequence, 9)
        run.pass_time(5)
        assert reader.times[0] == [0], "the interval holds the first back, the stop string the second"
        run.say(sequence, 31)
        assert reader.times[0] == [0, 15]
        assert reader.ids[0] == [7, 8, 9, 31]


def test_stream_interval_a_stream_that_was_paused_sends_as_soon_as_its_reader_is_back() -> None:
    with pumping(stream_interval_ms=1000, pause_after_ms=100, abandon_after_ms=60_000) as run:
        reader = TimedReader(run.clock, acknowledges=False)
        sequence = run.open(reader, flow_control=True).first
        run.say(sequence, 7)
        run.pass_time(5)
        run.say(sequence, 8)
        run.pass_time(200)
        assert [command for command, _ in run.told] == [Command.PAUSE]
        reader.acknowledge()
        run.pass_time(25)
        assert [command for command, _ in run.told] == [Command.PAUSE, Command.RESUME]
        assert reader.sizes == [1, 1]
        assert reader.times[0][1] <= 230


def test_stream_interval_an_acknowledgement_that_came_meanwhile_costs_no_further_time() -> None:
    with pumping(stream_interval_ms=20) as run:
        reader = TimedReader(run.clock)
        sequence = run.open(reader, flow_control=True).first
        for _ in range(8):
            run.say(sequence, 7)
            run.pass_time(7)
    assert reader.times[0] == [0, 20, 40]


def test_stream_interval_sequences_of_one_request_each_have_their_interval() -> None:
    with pumping(stream_interval_ms=18) as run:
        reader = TimedReader(run.clock)
        first, second = run.open(reader, num_return_sequences=2).sequences
        for _ in range(6):
            run.say(first, 7)
            run.pass_time(5)
            run.say(second, 8)
            run.pass_time(5)
    assert reader.times == {0: [0, 18, 36, 54], 1: [5, 23, 41, 59]}


def test_stream_interval_an_answer_that_does_not_stream_has_no_timers() -> None:
    with pumping(stream_interval_ms=20) as run:
        reader = TimedReader(run.clock)
        sequence = run.open(reader, stream=False).first
        for _ in range(5):
            run.say(sequence, 7)
        assert run.pump.wait_s(run.clock.now) == float("inf")
        run.say(sequence, end=FinishReason.LENGTH)
        assert reader.sizes == [5]


@pytest.mark.parametrize("value", [-1, 1001])
def test_stream_interval_an_interval_out_of_bounds_is_refused_by_name(value: int) -> None:
    fields = {"input_ids": [1], "max_tokens": 4, "stream": True, "stream_interval_ms": value}
    with pytest.raises(RequestError, match=f"stream_interval_ms: must be from 0 to 1000, not {value}"):
        parse_request(itertools.count(1), fields, context(), 0.0)


_FATES = (FinishReason.LENGTH, FinishReason.EOS, FinishReason.CANCELLED)


@st.composite
def _moves(draw: st.DrawFn) -> list[tuple[str, int, list[int], int]]:
    """What happens: tokens of a sequence, an acknowledgement, time."""
    kinds = st.sampled_from(["say", "say", "say", "wait", "acknowledge"])
    ids = st.lists(st.integers(0, 96), min_size=1, max_size=3)
    move = st.tuples(kinds, st.integers(0, 2), ids, st.integers(1, 60))
    return draw(st.lists(move, max_size=40))


@hypothesis_settings(max_examples=150, deadline=None)
@given(
    moves=_moves(),
    interval_ms=st.sampled_from([0, 1, 20, 50, 1000]),
    num_sequences=st.integers(1, 3),
    words=st.lists(st.text("abcd", min_size=1, max_size=5), max_size=2),
    fates=st.tuples(*[st.sampled_from(_FATES)] * 3),
    options=st.fixed_dictionaries(
        {"echo": st.booleans(), "flow_control": st.booleans(), "return_log_probs": st.just(False)}
    ),
    acknowledges=st.booleans(),
    leaves=st.sampled_from([False] * 5 + [True]),
)
def test_stream_interval_no_interval_changes_what_is_sent(
    *,
    moves: list[tuple[str, int, list[int], int]],
    interval_ms: int,
    num_sequences: int,
    words: list[str],
    fates: tuple[FinishReason, ...],
    options: dict[str, bool],
    acknowledges: bool,
    leaves: bool,
) -> None:
    with pumping(stream_interval_ms=interval_ms, pause_after_ms=100, abandon_after_ms=3000) as run:
        reader = TimedReader(run.clock, acknowledges=acknowledges or not options["flow_control"])
        stop_words = [word.encode() for word in words]
        fields = {"num_return_sequences": num_sequences, "stop_words": stop_words, **options}
        request = run.open(reader, **fields)
        for kind, index, token_ids, milliseconds in moves:
            if kind == "say":
                run.say(request.sequences[index % num_sequences], *token_ids)
            elif kind == "wait":
                run.pass_time(milliseconds)
            else:
                reader.acknowledge()
            if not options["flow_control"]:
                _check_promptness(run, request, reader, interval_ms)
        if leaves:
            reader.cancelled = True
            run.pass_time(5000)  # longer than the silence after which a stream is abandoned
            run.obey()
        for sequence, fate in zip(request.sequences, fates, strict=False):
            run.say(sequence, end=fate)
        for _ in range(4 * num_sequences):
            reader.acknowledge()
            run.pass_time(21)
        assert run.pump.num_streams == 0
        assert reader.num_finals == 1
        assert len(run.closed) == 1
        if reader.errors:
            assert leaves
            return
        _check_texts(request, reader, words, echoes=options["echo"])
        for times in reader.times.values():
            gaps = [later - earlier for earlier, later in itertools.pairwise(times[:-1])]
            # A stop string that is refuted, and a reader that is back, let one chunk leave sooner.
            if not words and acknowledges:
                assert all(gap >= interval_ms for gap in gaps)


def _check_promptness(run: Pumping, request: Request, reader: TimedReader, interval_ms: int) -> None:
    """Nothing that may leave stays longer than the interval after the chunk before it."""
    for index, sequence in enumerate(request.sequences):
        if sequence.num_output_tokens == 0 or sequence.finish_reason is not None:
            continue
        safe = None if sequence.stop_strings is None else sequence.stop_strings.num_safe_tokens
        echoed = sequence.num_prompt_tokens if request.output.echo else 0
        num_safe = echoed + sequence.num_output_tokens if safe is None else safe
        if len(reader.ids.get(index, [])) < num_safe:
            assert run.clock.now * 1000 < reader.times[index][-1] + interval_ms + 0.5


def _check_texts(request: Request, reader: TimedReader, words: list[str], *, echoes: bool) -> None:
    """Against the whole text of each sequence, cut at the word that ends first; of equal ends, the longest."""
    for index, sequence in enumerate(request.sequences):
        whole = "".join(map(spell, sequence.token_ids[sequence.num_prompt_tokens :]))
        ends = [(whole.find(word) + len(word), -len(word)) for word in words if word in whole]
        expected = whole[: min(ends)[0] + min(ends)[1]] if ends else whole
        echo = "".join(map(spell, sequence.token_ids[: sequence.num_prompt_tokens])) if echoes else ""
        assert reader.texts[index] == echo + expected
        assert reader.ids[index] == sequence.token_ids[0 if echoes else sequence.num_prompt_tokens :]
