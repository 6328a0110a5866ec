"""What a request gets, on a whole core: its sequences, its text up to a stop string, its end, and nothing beyond."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from tests.fakes.core import SPEC, Client, expected_tokens
from tests.fakes.engine import HeldEngine
from tests.fakes.serving import serving, spell, until
from trident_backend.engine.mock import MockEngine
from trident_backend.metrics.records import RequestRecord
from trident_backend.sequences.sequence import FinishReason
from trident_backend.serving.responses import Response
from trident_backend.serving.service import CoreService
from trident_ensemble.acknowledgements import Acknowledger
from trident_ensemble.contract.chunk_header import ALL, unpack
from trident_ensemble.contract.errors import (
    CancelledError,
    EngineError,
    RequestError,
)
from trident_ensemble.contract.settings import CoreSettings


class Reader(Client):
    """Behind a postprocessing that acknowledges each chunk, sometimes late; puts together the text of each sequence."""

    def __init__(self, delay: float = 0.0) -> None:
        super().__init__()
        self.delay = delay
        self.texts: dict[int, str] = {}
        self.ids: dict[int, list[int]] = {}
        self.log_probs: dict[int, list[float]] = {}
        self.reasons: dict[int, str] = {}
        self.postprocessing = Acknowledger(0)

    def send(self, response: Response) -> None:
        outputs = {spec.name: values.tolist() for spec, values in response.outputs}
        header = unpack(response.header.pack())
        indices = outputs.get("sequence_index", [0])
        assert len(header.parts) == len(indices)
        for index, part, row in zip(indices, header.parts, response.output_ids.tolist(), strict=True):
            own, filling = row[: part.num_ids], row[part.num_ids :]
            assert set(filling) <= {0}
            text = "".join(map(spell, own[: len(own) - part.num_hidden]))
            assert part.num_characters <= len(text), "nothing is cut off that was not sent"
            self.texts[index] = (
                self.texts.get(index, "") + text[: None if part.num_characters == ALL else part.num_characters]
            )
            assert index not in self.reasons, "nothing comes after a sequence's end"
            self.ids[index] = self.ids.get(index, []) + own
        for index, row in zip(indices, outputs.get("output_log_probs", []), strict=False):
            self.log_probs[index] = self.log_probs.get(index, []) + row
        assert header.is_last == ("finish_reason" in outputs)
        if header.is_last:
            self.reasons |= dict(zip(indices, (reason.decode() for reason in outputs["finish_reason"]), strict=True))
        super().send(response)
        if header.table_id:
            time.sleep(self.delay)
            self.postprocessing.acknowledge(header.table_id, header.column, header.secret, header.number)


def _expected(fields: dict[str, Any]) -> tuple[list[int], str, str]:
    """Ids, text and reason of each answer, from the definition of a stop word: token by token, the whole text anew."""
    output, words = expected_tokens(fields["input_ids"], fields["max_tokens"]), fields.get("stop_words", [])
    ids: list[int] = []
    for token_id in output:
        ids.append(token_id)
        if token_id in fields.get("stop_token_ids", []):
            return ids, "".join(map(spell, ids[:-1])), "stop"
        text = "".join(map(spell, ids))
        # What ends first is found first; what came with an earlier token was.
        ends = [(text.find(word.decode()) + len(word), -len(word)) for word in words if word.decode() in text]
        if ends:
            end, length = min(ends)
            return ids, text[: end + length], "stop"
    return ids, "".join(map(spell, ids)), "length"


@pytest.mark.parametrize("seed", range(3))
def test_responses_a_random_crowd_gets_the_text_of_each_alone(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 (a test's choice)
    settings = CoreSettings(max_queue_size=1000, pause_after_ms=20, abandon_after_ms=20_000)
    with serving(MockEngine(SPEC), settings) as service:
        asked: list[tuple[Reader, dict[str, Any], str]] = []
        for number in range(70):
            fields: dict[str, Any] = {
                "input_ids": [rng.randrange(SPEC.vocab_size) for _ in range(rng.randint(1, 30))],
                "max_tokens": rng.randint(0, 24),
                "stream": rng.random() < 0.6,
                "flow_control": rng.random() < 0.5,
                "stream_interval_ms": rng.choice([0, 0, 5, 50]),
                "echo": rng.random() < 0.3,
                "num_return_sequences": rng.choice([1, 1, 2, 3]),
            }
            if rng.random() < 0.7:
                words = ["".join(rng.choices("abcd", k=rng.randint(1, 5))).encode() for _ in range(rng.randint(1, 3))]
                fields["stop_words"] = words
            if rng.random() < 0.3:
                fields["stop_token_ids"] = rng.sample(range(SPEC.vocab_size), 6)
            reader = Reader(rng.choice([0.0, 0.0, 0.003]))
            reader.cancelled = rng.random() < 0.05
            fate = rng.choice(["", "", "", "stopped"])
            service.submit(fields, reader, request_id=f"{seed}-{number}")
            if fate:
                stopper = Client()
                service.submit({"input_ids": [0], "stop": True}, stopper, request_id=f"{seed}-{number}")
                assert stopper.done.is_set()
            asked.append((reader, fields, fate))
        for reader, fields, fate in asked:
            assert reader.done.wait(60)
            if reader.errors:
                assert reader.cancelled
                continue
            ids, text, reason = _expected(fields)
            echoed = fields["input_ids"] if fields["echo"] else []
            assert sorted(reader.texts) == list(range(fields["num_return_sequences"]))
            for index, sent in reader.ids.items():
                assert reader.texts[index].startswith("".join(map(spell, echoed)))
                own = reader.texts[index][3 * len(echoed) :]
                if reader.reasons[index] == "cancelled":
                    assert fate
                    assert sent == (echoed + ids)[: len(sent)]
                    assert text.startswith(own)
                else:
                    assert (sent, own, reader.reasons[index]) == (echoed + ids, text, reason)
        until(lambda: service.stats.num_used_blocks == 0 and service.stats.num_open == 0)
    assert all(reader.num_finals == 1 and not reader.asked_after_final for reader, _, _ in asked)


def test_responses_what_may_begin_a_stop_string_waits_and_nothing_else() -> None:
    prompt = [1, 2, 3]
    output = expected_tokens(prompt, 12)
    texts = [spell(token_id) for token_id in output]
    # Begins within the eighth token and never comes true; then one that does.
    wrong, right = texts[7][1:] + texts[8] + "!", texts[9][1:] + texts[10][:2]
    with serving(MockEngine(SPEC, step_seconds=0.05)) as service:
        reader = Reader()
        words = [wrong.encode(), right.encode()]
        service.submit({"input_ids": prompt, "max_tokens": 12, "stream": True, "stop_words": words}, reader)
        assert reader.done.wait(60)
    assert reader.texts[0] == "".join(texts)[: "".join(texts).index(right)]
    assert reader.reasons[0] == "stop"
    assert reader.outputs["stop_reason"] == [right.encode()]
    assert reader.outputs["num_output_tokens"] == [11]
    chunks = [chunk.output_ids[0].tolist() for chunk in reader.chunks]
    assert sum(map(len, chunks[:-1])) == 9, "what has the beginning of the right one in it leaves with the end"
    assert output[7:9] in chunks, "what has the beginning of the wrong one in it leaves when that is refuted"


def alike(token_ids: list[int], num_sequences: int) -> dict[int, list[int]]:
    return dict.fromkeys(range(num_sequences), token_ids)


def test_responses_answers_that_do_not_stream_come_together() -> None:
    with serving(MockEngine(SPEC)) as service:
        reader = Reader()
        fields = {"input_ids": [4, 5], "max_tokens": 6, "num_return_sequences": 3, "echo": True}
        service.submit(fields, reader)
        assert reader.done.wait(60)
    assert len(reader.chunks) == 1
    assert reader.ids == alike([4, 5, *expected_tokens([4, 5], 6)], 3)
    assert reader.outputs["sequence_length"] == [8, 8, 8]
    assert reader.outputs["num_output_tokens"] == [6, 6, 6]


def test_responses_of_streams_of_one_request_only_the_last_one_ends_it() -> None:
    with serving(MockEngine(SPEC, step_seconds=0.001)) as service:
        reader = Reader()
        service.submit({"input_ids": [4], "max_tokens": 9, "num_return_sequences": 4, "stream": True}, reader)
        assert reader.done.wait(60)
    assert reader.ids == alike(expected_tokens([4], 9), 4)
    assert [chunk.is_final for chunk in reader.chunks].count(True) == 1
    assert reader.chunks[-1].is_final
    assert sum(chunk.header.is_last for chunk in reader.chunks) == 4
    assert all("sequence_index" in {spec.name for spec, _ in chunk.outputs} for chunk in reader.chunks)


def test_responses_one_failed_sequence_fails_its_request_once_and_frees_the_others() -> None:
    engine = MockEngine(SPEC, step_seconds=0.05)
    with serving(engine) as service:
        for streaming in (False, True):
            reader, other = Reader(), Reader()
            fields = {"input_ids": [4], "max_tokens": 30, "num_return_sequences": 3, "stream": streaming}
            service.submit(fields, reader)
            until(lambda: service.stats.num_running == 3)
            engine.fail_next = True
            assert reader.done.wait(60)
            assert [type(error) for error in reader.errors] == [EngineError]
            until(lambda: service.stats.num_open == 0 and service.stats.num_used_blocks == 0)
            service.submit({"input_ids": [4], "max_tokens": 5}, other)
            assert other.done.wait(60)
        time.sleep(0.02)
    assert reader.num_finals == 1


def test_responses_a_client_that_leaves_frees_all_its_sequences() -> None:
    with serving(MockEngine(SPEC, step_seconds=0.1)) as service:
        reader = Reader()
        service.submit({"input_ids": [4], "max_tokens": 23, "num_return_sequences": 4, "stream": True}, reader)
        until(lambda: service.stats.num_running == 4)
        reader.cancelled = True
        assert reader.done.wait(60)
        assert [type(error) for error in reader.errors] == [CancelledError]
        until(lambda: service.stats.num_running == 0 and service.stats.num_used_blocks == 0)


def stop(service: CoreService, request_id: str, **fields: Any) -> Client:
    client = Client()
    service.submit({"input_ids": [0], "max_tokens": 1, "stop": True, **fields}, client, request_id)
    assert client.num_finals == 1
    assert client.chunks[0].output_ids.shape == (1, 0)
    assert client.chunks[0].header.context_ids in ([], ())
    assert client.outputs == {"finish_reason": [b"cancelled"]}
    assert client.chunks[0].header.is_last
    return client


@pytest.mark.parametrize("streaming", [False, True])
def test_responses_a_request_is_stopped_by_its_id_and_gets_what_there_is(streaming: bool) -> None:
    engine = HeldEngine(SPEC, 10)
    with serving(engine) as service:
        stopped, other = Reader(), Reader()
        fields = {"input_ids": [4], "max_tokens": 30, "num_return_sequences": 2, "stream": streaming}
        # Nothing ends with the first two letters of this word for long: what waits for the third is sent at the end.
        service.submit(fields | {"stop_words": [b"abcdeabcde"]}, stopped, "mine")
        service.submit({"input_ids": [5], "max_tokens": 25}, other, "other")
        until(lambda: engine.num_steps > 8)
        stop(service, "mine")
        engine.release()
        assert stopped.done.wait(60)
        until(lambda: service.stats.num_open == 1)
        assert other.done.wait(60)
        assert other.reasons == {0: "length"}
    assert not stopped.errors
    assert stopped.reasons == {0: "cancelled", 1: "cancelled"}
    for ids in stopped.ids.values():
        assert 3 < len(ids) < 30
        assert ids == expected_tokens([4], 30)[: len(ids)]
    assert {r.finish_reason for r in service.take_records() if isinstance(r, RequestRecord)} == {
        FinishReason.CANCELLED,
        FinishReason.LENGTH,
    }


def test_responses_stopping_an_unknown_request_is_answered_and_one_without_an_id_refused() -> None:
    with serving(MockEngine(SPEC)) as service:
        stop(service, "nobody's")
        with pytest.raises(RequestError, match=r"^stop: needs the request id"):
            service.submit({"input_ids": [0], "stop": True}, Client())


def test_responses_a_tenant_stops_its_own_requests_alone_and_all_of_one_name() -> None:
    engine = HeldEngine(SPEC, 3)
    with serving(engine) as service:
        readers = [Reader() for _ in range(3)]
        for reader, tenant in zip(readers, (b"a", b"a", b"b"), strict=True):
            service.submit({"input_ids": [4], "max_tokens": 60, "tenant": tenant}, reader, "1")
        stop(service, "1", tenant=b"a")
        engine.let(5)
        assert readers[0].done.wait(60)
        assert readers[1].done.wait(60)
        assert not readers[2].done.is_set()
        stop(service, "1")
        engine.release()
        assert readers[2].done.wait(60)
        assert readers[2].reasons == {0: "length"}


def test_responses_an_id_can_be_used_again() -> None:
    with serving(MockEngine(SPEC, step_seconds=0.002)) as service:
        for _ in range(3):
            reader = Reader()
            service.submit({"input_ids": [4], "max_tokens": 5}, reader, "again")
            assert reader.done.wait(60)
        until(lambda: service.stats.num_open == 0)
        stop(service, "again")


def test_responses_every_refusal_is_counted() -> None:
    with serving(MockEngine(SPEC), CoreSettings(max_queue_size=0)) as service:
        with pytest.raises(RequestError):
            service.submit({"input_ids": [1], "max_tokens": -2}, Client())
        with pytest.raises(RequestError):
            service.submit({"input_ids": [1], "max_tokens": 4, "num_return_sequences": 5}, Client())
        records = service.take_records()
    assert [record.finish_reason for record in records if isinstance(record, RequestRecord)] == ["refused"] * 2


def test_responses_an_ended_answer_whose_reader_is_gone_is_closed() -> None:
    """The sequence has ended before; what is left of it can never be sent."""
    settings = CoreSettings(pause_after_ms=300, abandon_after_ms=300)
    # Slow enough for a first chunk to leave before the last token is there.
    with serving(MockEngine(SPEC, step_seconds=0.02), settings) as service:
        client = Client()
        fields = {"input_ids": [4], "max_tokens": 9, "ignore_eos": True, "stream": True, "flow_control": True}
        service.submit(fields, client)
        assert client.done.wait(60)
        assert isinstance(client.errors[0], CancelledError)
        until(lambda: service.stats.num_open == 0)
    assert client.num_finals == 1


def test_responses_of_several_sequences_one_chunk_is_on_its_way_at_a_time() -> None:
    """tritonserver mixes up the outputs of one ensemble request's responses that are on their way together."""
    settings = CoreSettings(pause_after_ms=600_000, abandon_after_ms=600_000)
    with serving(MockEngine(SPEC), settings) as service:
        client = Client()
        fields = {"input_ids": [4], "max_tokens": 9, "ignore_eos": True, "stream": True, "flow_control": True}
        service.submit(fields | {"num_return_sequences": 3}, client)
        until(lambda: client.chunks)
        until(lambda: service.stats.num_steps >= 9)
        time.sleep(0.05)
        assert len(client.chunks) == 1
