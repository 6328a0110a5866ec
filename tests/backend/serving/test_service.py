"""The core as a whole on the mock engine: every request is answered once, whatever happens."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.core import SPEC, Client, expected_tokens, make_sequence
from tests.fakes.engine import HeldEngine
from tests.fakes.serving import make_service, serving, until
from trident_backend.core import EngineCore
from trident_backend.engine.host_logits import HostLogits
from trident_backend.engine.mock import MockEngine
from trident_backend.sequences.sequence import FinishReason
from trident_backend.serving.answers import FlowControl, FlowState
from trident_backend.serving.events import Command, TokenEvent
from trident_backend.serving.loop import EngineLoop
from trident_backend.serving.responses import Response
from trident_ensemble.acknowledgements import GONE, Acknowledger
from trident_ensemble.contract.errors import (
    CancelledError,
    DeadlineError,
    DrainingError,
    EngineError,
    QueueFullError,
    RequestError,
    wire_message,
)
from trident_ensemble.contract.settings import CoreSettings
from trident_ensemble.draining import DrainNotice


@pytest.mark.slow
def test_service_random_crowd_with_cancels_gets_the_unbatched_answers() -> None:
    rng = random.Random(11)  # noqa: S311 (a test's choice)
    with serving(MockEngine(SPEC)) as service:
        asked = []
        for _ in range(200):
            prompt = [rng.randrange(SPEC.vocab_size) for _ in range(rng.randint(1, 40))]
            max_tokens = rng.randint(0, 24)
            client = Client()
            client.cancelled = rng.random() < 0.1
            service.submit({"input_ids": list(prompt), "max_tokens": max_tokens, "stream": rng.random() < 0.5}, client)
            asked.append((client, prompt, max_tokens))
        for client, prompt, max_tokens in asked:
            assert client.done.wait(60)
            output = expected_tokens(prompt, max_tokens)
            assert client.output_ids == output[: len(client.output_ids)]
            if not client.errors:
                assert client.output_ids == output
                assert client.outputs["finish_reason"] == [b"length"]
                assert client.outputs["num_output_tokens"] == [max_tokens]
                said = ["num_input_tokens" in {spec.name for spec, _ in chunk.outputs} for chunk in client.chunks]
                assert said == [index in {0, len(said) - 1} for index in range(len(said))]
                assert client.outputs["num_input_tokens"] == [len(prompt)]
            else:
                assert client.cancelled
                assert isinstance(client.errors[0], CancelledError)
        until(lambda: service.stats.num_used_blocks == 0 and service.stats.num_waiting == 0)
    assert all(client.num_finals == 1 and not client.asked_after_final for client, _, _ in asked)


@pytest.mark.parametrize("streaming", [False, True])
def test_service_a_request_for_no_tokens_gets_what_it_asks_of_its_prompt(streaming: bool) -> None:
    prompt, answers = [3, 1, 4, 1, 5, 9, 2, 6], []
    asked = {"input_ids": prompt, "return_prompt_log_probs": True, "num_top_log_probs": 2, "num_return_sequences": 3}
    with serving(MockEngine(SPEC)) as service:
        for max_tokens in (1, 0):
            client = Client()
            service.submit({**asked, "max_tokens": max_tokens, "echo": True, "stream": streaming}, client)
            assert client.done.wait(60)
            assert not client.errors
            answers.append(client)
        until(lambda: service.stats.num_used_blocks == 0 and service.stats.num_open == 0)
    one, none = answers
    of_prompt = {
        name: values
        for chunk in one.chunks
        for name, values in ((spec.name, values.tolist()) for spec, values in chunk.outputs)
        if name.startswith("prompt_")
    }
    assert len(of_prompt) == 3
    said: dict[str, Any] = {}
    for chunk in none.chunks:
        outputs = {spec.name: values.tolist() for spec, values in chunk.outputs}
        assert all(row == prompt for row in chunk.output_ids.tolist())
        assert set(outputs["finish_reason"]) == {b"length"}
        said |= outputs
    assert said.items() >= of_prompt.items()
    assert set(said["num_output_tokens"]) == {0}
    assert (none.num_finals, len(none.chunks)) == (1, 3 if streaming else 1)


def test_service_a_full_queue_is_said_at_once_and_room_comes_back() -> None:
    settings, engine = CoreSettings(max_queue_size=2), HeldEngine(SPEC)
    with serving(engine, settings) as service:
        clients = [Client() for _ in range(SPEC.max_num_seqs + 2)]
        for client in clients:
            service.submit({"input_ids": [1], "max_tokens": 20}, client)
        with pytest.raises(QueueFullError, match="max_queue_size 2"):
            service.submit({"input_ids": [1], "max_tokens": 20}, Client())
        engine.release()
        assert all(client.done.wait(60) for client in clients)
        late = Client()
        service.submit({"input_ids": [1], "max_tokens": 2}, late)
        assert late.done.wait(60)


def test_service_a_full_queue_is_found_out_before_anything_is_made_for_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = HeldEngine(SPEC)
    with serving(engine, CoreSettings(max_queue_size=1)) as service:
        clients = [Client() for _ in range(SPEC.max_num_seqs + 1)]
        for client in clients:
            service.submit({"input_ids": [1], "max_tokens": 20}, client)

        def never(*_: object) -> None:
            raise AssertionError("a request that cannot enter was read")

        monkeypatch.setattr("trident_backend.serving.service.parse_request", never)
        with pytest.raises(QueueFullError, match="max_queue_size 1"):
            service.submit({"input_ids": [1] * 40, "max_tokens": 20, "num_return_sequences": 4}, Client())
        engine.release()


def test_service_a_timeout_reaches_the_client_once_and_in_time() -> None:
    with serving(MockEngine(SPEC, step_seconds=0.01)) as service:
        late, streaming, other = Client(), Client(), Client()
        fields = {"max_tokens": 30, "timeout_ms": 120}
        service.submit({"input_ids": [1], **fields}, late)
        service.submit({"input_ids": [2], **fields, "stream": True}, streaming)
        service.submit({"input_ids": [3], "max_tokens": 30}, other)
        assert late.done.wait(60)
        assert streaming.done.wait(60)
        assert other.done.wait(60)
        until(lambda: service.stats.num_used_blocks == 0 and service.stats.num_open == 0)
    for client in (late, streaming):
        assert client.num_finals == 1
        assert isinstance(client.errors[0], DeadlineError)
        assert wire_message(client.errors[0]).startswith("[UNAVAILABLE] timeout: timeout_ms: 120 ms have passed, with ")
    assert not late.chunks
    assert streaming.output_ids == expected_tokens([2], 30)[: len(streaming.output_ids)]
    assert other.output_ids == expected_tokens([3], 30)


def test_service_more_tokens_than_may_wait_are_refused_by_the_settings_name() -> None:
    num_tokens = SPEC.num_blocks * SPEC.block_size
    engine = HeldEngine(SPEC)
    with serving(engine, CoreSettings(max_queue_tokens=10)) as service:
        clients = [Client(), Client()]
        for client in clients:
            service.submit({"input_ids": [1] * (num_tokens // 2), "max_tokens": 4}, client)
        with pytest.raises(QueueFullError, match=r"11 tokens beside 96 are more than .* max_queue_tokens 10"):
            service.submit({"input_ids": [1] * 11, "max_tokens": 4}, Client())
        engine.release()
        assert all(client.done.wait(60) for client in clients)
        until(lambda: service.stats.num_open == 0)
        service.submit({"input_ids": [1] * 11, "max_tokens": 4}, Client())


def test_service_a_bad_request_disturbs_nobody() -> None:
    with serving(MockEngine(SPEC, step_seconds=0.002)) as service:
        good = Client()
        service.submit({"input_ids": [3, 4], "max_tokens": 30, "stream": True}, good)
        for fields in ({"input_ids": [], "max_tokens": 1}, {"input_ids": [1], "max_tokens": -2}):
            with pytest.raises(RequestError):
                service.submit(fields, Client())
        assert good.done.wait(60)
        assert good.output_ids == expected_tokens([3, 4], 30)


def test_service_a_failed_step_ends_its_sequences_and_the_core_goes_on() -> None:
    engine = MockEngine(SPEC, step_seconds=0.005)
    with serving(engine) as service:
        first, second = Client(), Client()
        service.submit({"input_ids": [1], "max_tokens": 50}, first)
        until(lambda: engine.num_steps > 3)
        engine.fail_next = True
        assert first.done.wait(60)
        assert isinstance(first.errors[0], EngineError)
        service.submit({"input_ids": [1], "max_tokens": 5}, second)
        assert second.done.wait(60)
        assert second.output_ids == expected_tokens([1], 5)


def test_service_a_broken_engine_answers_everybody_and_is_fatal() -> None:
    class Broken(MockEngine):
        def collect(self) -> HostLogits:
            raise RuntimeError("out of the blue")

    died = threading.Event()
    service = make_service(Broken(SPEC), on_fatal=lambda _: died.set())
    clients = [Client() for _ in range(9)]
    for client in clients:
        try:
            service.submit({"input_ids": [1], "max_tokens": 5}, client)
        except Exception as error:
            client.fail(error)  # type: ignore[arg-type]
    assert died.wait(60)
    assert all(client.done.is_set() and client.num_finals == 1 for client in clients)


def test_service_an_abort_that_overtakes_its_addition_harms_nobody() -> None:
    events: list[TokenEvent] = []
    died: list[BaseException] = []
    core = EngineCore(MockEngine(SPEC), CoreSettings(), time.monotonic)
    loop = EngineLoop(core, events.extend, lambda _: None, died.append)
    hasty, other = make_sequence(1, [1], 5), make_sequence(2, [2], 5)
    for command, sequence in (
        (Command.ABORT, hasty),
        (Command.PAUSE, hasty),
        (Command.ADD, hasty),
        (Command.ADD, other),
    ):
        loop.tell(command, sequence)
    loop.start()
    until(lambda: other.finish_reason is not None)
    loop.stop()
    assert not died
    assert [event.finish_reason for event in events if event.sequence_id == 1] == [FinishReason.CANCELLED]
    assert other.token_ids[1:] == expected_tokens([2], 5)


class _Undecided:
    """Stop strings whose word is found when nothing more comes."""

    num_safe_tokens = 0
    num_characters = 0

    def append(self, token_id: int) -> None: ...

    def finish(self) -> str:
        return "word"


def test_service_who_is_asked_to_stop_looks_once_more_for_a_stop_string() -> None:
    events: list[TokenEvent] = []
    loop = EngineLoop(
        EngineCore(MockEngine(SPEC), CoreSettings(), time.monotonic), events.extend, lambda _: None, lambda _: None
    )
    plain, found = make_sequence(1, [1], 60), make_sequence(2, [1], 60)
    found.stop_strings = _Undecided()  # type: ignore[assignment]
    for sequence in (plain, found):
        loop.tell(Command.STOP, sequence)
    loop.start()
    until(lambda: found.finish_reason is not None)
    loop.stop()
    ends = {event.sequence_id: event.finish_reason for event in events}
    assert ends == {1: FinishReason.CANCELLED, 2: FinishReason.STOP}
    assert (plain.error, found.error, found.stop_reason) == (None, None, "word")


def test_service_shutdown_answers_everybody() -> None:
    with serving(MockEngine(SPEC, step_seconds=0.1)) as service:
        clients = [Client() for _ in range(9)]
        for client in clients:
            service.submit({"input_ids": [1], "max_tokens": 50, "stream": True}, client)
    assert all(client.num_finals == 1 and isinstance(client.errors[0], DrainingError) for client in clients)


def test_service_a_draining_core_finishes_what_it_has_and_takes_nothing_new(tmp_path: Path) -> None:
    notice = DrainNotice(tmp_path / "notice")
    with serving(MockEngine(SPEC, step_seconds=0.005), notice=notice) as service:
        client = Client()
        service.submit({"input_ids": [1], "max_tokens": 50}, client)
        notice.give()
        with pytest.raises(DrainingError):
            service.submit({"input_ids": [1], "max_tokens": 5}, Client())
        assert client.done.wait(60)
        assert client.output_ids == expected_tokens([1], 50)


class Acknowledging(Client):
    """A client behind a postprocessing that acknowledges while `alive`."""

    def __init__(self, delay: float = 0.0) -> None:
        super().__init__()
        self.alive = True
        self.delay = delay
        self.last_acknowledged = 0
        self.postprocessing = Acknowledger(0)
        self._sending = threading.Lock()

    def send(self, response: Response) -> None:
        with self._sending:
            super().send(response)
            if self.alive:
                time.sleep(self.delay)
                self.last_acknowledged = response.header.number
                self.postprocessing.acknowledge(*_acknowledgement(response))

    def leave(self) -> None:
        """Acknowledge nothing that comes from now on; what is being sent now is acknowledged first."""
        with self._sending:
            self.alive = False


def test_service_an_unread_stream_pauses_and_then_frees_its_blocks_while_its_neighbour_flows() -> None:
    settings = CoreSettings(pause_after_ms=60, abandon_after_ms=2000, stream_interval_ms=0)
    engine = HeldEngine(SPEC, 8, step_seconds=0.002)
    with serving(engine, settings) as service:
        gone, reader = Acknowledging(), Acknowledging()
        fields = {"max_tokens": 60, "stream": True, "flow_control": True}
        service.submit({"input_ids": [1], **fields}, gone)
        until(lambda: len(gone.chunks) > 2)
        gone.leave()
        engine.release()
        until(lambda: service.stats.num_paused == 1)
        steps = engine.num_steps
        time.sleep(0.05)
        assert engine.num_steps == steps, "a paused stream costs no steps"
        service.submit({"input_ids": [2], **fields}, reader)
        assert reader.done.wait(60)
        assert reader.output_ids == expected_tokens([2], 60)
        assert gone.done.wait(60)
        assert isinstance(gone.errors[0], CancelledError)
        until(lambda: service.stats.num_used_blocks == 0)


def test_service_a_slow_reader_gets_everything_in_fewer_chunks() -> None:
    with serving(MockEngine(SPEC, step_seconds=0.001)) as service:
        slow = Acknowledging(delay=0.02)
        service.submit({"input_ids": [5], "max_tokens": 60, "stream": True, "flow_control": True}, slow)
        assert slow.done.wait(60)
        assert slow.output_ids == expected_tokens([5], 60)
        assert len(slow.chunks) < 60


def test_service_a_client_reported_gone_ends_at_once() -> None:
    engine = HeldEngine(SPEC, 8)
    with serving(engine, CoreSettings(abandon_after_ms=600_000, stream_interval_ms=0)) as service:
        gone = Acknowledging()
        service.submit({"input_ids": [1], "max_tokens": 60, "stream": True, "flow_control": True}, gone)
        until(lambda: len(gone.chunks) > 2)
        gone.leave()
        engine.release()
        until(lambda: gone.chunks[-1].header.number != gone.last_acknowledged)
        table_id, slot, secret, _ = _acknowledgement(gone.chunks[-1])
        gone.postprocessing.acknowledge(table_id, slot, secret, GONE)
        assert gone.done.wait(60)
        assert isinstance(gone.errors[0], CancelledError)
        until(lambda: service.stats.num_used_blocks == 0)


def test_service_one_chunk_of_a_stream_is_on_its_way_at_a_time() -> None:
    settings = CoreSettings(pause_after_ms=600_000, abandon_after_ms=600_000, stream_interval_ms=0)
    with serving(MockEngine(SPEC), settings) as service:
        client = Acknowledging()
        client.alive = False
        service.submit({"input_ids": [1], "max_tokens": 40, "stream": True, "flow_control": True}, client)
        until(lambda: service.stats.num_running == 0 and service.stats.num_steps >= 40)
        assert len(client.chunks) == 1
        client.postprocessing.acknowledge(*_acknowledgement(client.chunks[0]))
        assert client.done.wait(60)
        assert len(client.chunks) == 2, "all that waited leaves as one"
        assert client.output_ids == expected_tokens([1], 40)


def test_service_flow_control_by_the_clock() -> None:
    flow = FlowControl(CoreSettings(pause_after_ms=100, abandon_after_ms=1000, stream_interval_ms=0))
    assert flow.may_send
    flow.sent(10.0)
    assert not flow.may_send
    assert flow.state(10.09) is FlowState.FLOWING
    assert flow.state(10.11) is FlowState.STALLED
    flow.acknowledged(1)
    assert flow.may_send
    assert flow.state(99.0) is FlowState.FLOWING, "nothing is on its way"
    flow.sent(100.0)
    assert flow.state(101.1) is FlowState.GONE
    flow.acknowledged(GONE)
    assert flow.state(100.0) is FlowState.GONE


def _acknowledgement(response: Response) -> tuple[int, int, int, int]:
    header = response.header
    return header.table_id, header.column, header.secret, header.number
