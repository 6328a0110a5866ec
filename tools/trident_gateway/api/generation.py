"""The life of one request for text, whichever endpoint it came by: reserved, sent, read, settled.

Owns the order of these, and that a request is settled with what it has used on every way out. Never reads a body and
never writes an answer.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec

from trident_ensemble.contract import tensors
from trident_gateway.api.choices import AnswerPlan, Choice, Delta
from trident_gateway.api.context import ApiContext
from trident_gateway.api.interface import AnswerSink, HttpRequest
from trident_gateway.api.rows import TokenScores, prompt_scores, rows_of
from trident_gateway.api.translate import ParamNames, Tensors, in_client_terms
from trident_gateway.api.usage import TokenMeter, Usage
from trident_gateway.callers import Caller
from trident_gateway.errors import ApiError, EngineFaultError, UpstreamLostError
from trident_gateway.limits.limiter import Reservation
from trident_gateway.upstream.events import GenerateEvent, MalformedEventError, as_list
from trident_gateway.upstream.exchange import Exchange
from trident_gateway.upstream.served_model import GenerateCall, ServedModel

_TIMES = (tensors.ARRIVAL_TIME, tensors.FIRST_SCHEDULED_TIME, tensors.FIRST_TOKEN_TIME, tensors.LAST_TOKEN_TIME)


@dataclass(frozen=True)
class PromptCall:
    """One prompt, and what is asked of the ensemble for it.

    Args:
        values: the input tensors.
        num_bytes: of the prompt in UTF-8, or four for each token id; the estimate of its tokens goes by them.
        affinity: calls with equal bytes prefer the same server.
        names: how the client calls what may be refused.
    """

    values: Tensors
    num_bytes: int
    affinity: bytes
    names: ParamNames


@dataclass(frozen=True)
class GenerationPlan:
    """All of a request for text.

    Args:
        model: that is asked.
        prompts: one call each.
        answers: how the answers are read.
        num_choices: answers to each prompt.
        max_output_tokens: of one answer.
        is_stream: deltas are wanted as they come.
        timeout_s: seconds for all of it.
        echo: answers begin with their prompts.
    """

    model: ServedModel
    prompts: Sequence[PromptCall]
    answers: AnswerPlan
    num_choices: int
    max_output_tokens: int
    is_stream: bool
    timeout_s: float
    echo: bool = False


class Generation:
    """A request for text while it runs.

    Args:
        plan: what is asked.
        exchanges: one for each prompt, in their order.
        reservation: what it holds of its caller's limits.
        request: takes what the log and the trace show.
    """

    def __init__(
        self, plan: GenerationPlan, exchanges: Sequence[Exchange], reservation: Reservation, request: HttpRequest
    ) -> None:
        self._plan = plan
        self._exchanges = exchanges
        self._reservation = reservation
        self._request = request
        self._meters = [TokenMeter(echo=plan.echo) for _ in exchanges]
        num = plan.num_choices
        self._choices = [
            [Choice(at * num + index, plan.answers) for index in range(num)] for at in range(len(exchanges))
        ]
        self._reads: dict[asyncio.Task[Sequence[GenerateEvent]], int] = {}
        self._is_corrected = False
        #: The prompts' tokens with their log probabilities, where they were asked for, by the prompt's position.
        self.prompt_scores: dict[int, list[TokenScores]] = {}

    @property
    def usage(self) -> Usage:
        """What has been used so far."""
        reasoning = [choice.num_reasoning_tokens for choices in self._choices for choice in choices]
        counted = [count for count in reasoning if count is not None]
        return Usage(
            sum(meter.num_input or 0 for meter in self._meters),
            sum(meter.num_cached for meter in self._meters),
            sum(meter.num_output for meter in self._meters),
            sum(counted) if counted else None,
        )

    async def deltas(self) -> AsyncIterator[list[Delta]]:
        """Yield what has come, all of one read together, until every answer is complete.

        Raises:
            ApiError: a server was lost, or has failed.
        """
        if len(self._exchanges) == 1:
            exchange = self._exchanges[0]
            while events := await exchange.read():
                yield self._take(0, events)
        else:
            async for position, events in self._merged():
                yield self._take(position, events)
        if not all(choice.finish_reason for choices in self._choices for choice in choices):
            raise UpstreamLostError

    async def settle(self) -> None:
        """Pay for what was used; only the first call counts."""
        usage = self.usage
        record = self._request.record
        record.num_input_tokens, record.num_cached_tokens = usage.num_input, usage.num_cached
        record.num_output_tokens = usage.num_output
        record.finish_reason = self._choices[0][0].finish_reason
        is_known = all(meter.num_input is not None for meter in self._meters)
        await self._reservation.settle(usage.num_input if is_known else None, usage.num_output)

    async def close(self) -> None:
        """Let go of the servers; what still runs there is ended."""
        for task in self._reads:
            task.cancel()
        await asyncio.gather(*self._reads, *(exchange.close() for exchange in self._exchanges), return_exceptions=True)

    async def _merged(self) -> AsyncIterator[tuple[int, Sequence[GenerateEvent]]]:
        """Yield each prompt's events as they come."""
        self._reads = {self._read(exchange): at for at, exchange in enumerate(self._exchanges)}
        while self._reads:
            done, _ = await asyncio.wait(self._reads, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                position = self._reads.pop(task)
                events = task.result()
                if events:
                    yield position, events
                    self._reads[self._read(self._exchanges[position])] = position

    @staticmethod
    def _read(exchange: Exchange) -> asyncio.Task[Sequence[GenerateEvent]]:
        return asyncio.get_running_loop().create_task(exchange.read())

    def _take(self, position: int, events: Sequence[GenerateEvent]) -> list[Delta]:
        meter, choices = self._meters[position], self._choices[position]
        deltas: list[Delta] = []
        try:
            for event in events:
                meter.read(event)
                if event.prompt_token_bytes is not None:
                    self.prompt_scores[position] = prompt_scores(event)
                if event.first_token_time_ns is not None:
                    self._trace(event)
                for row in rows_of(event):
                    meter.count(row)
                    deltas.append(choices[row.index].read(row))
        except (MalformedEventError, ValueError, IndexError):
            # A response that does not fit together is the server's fault, and its text may quote what was said.
            raise EngineFaultError from None
        if not self._is_corrected and all(meter.num_input is not None for meter in self._meters):
            self._is_corrected = True
            self._reservation.correct_input(sum(meter.num_input or 0 for meter in self._meters))
        return deltas

    def _trace(self, event: GenerateEvent) -> None:
        times = {spec.name: as_list(getattr(event, spec.name)) for spec in _TIMES}
        self._request.span.add_engine_times({name: values[0] for name, values in times.items() if values})


@asynccontextmanager
async def generating(
    context: ApiContext, request: HttpRequest, out: AnswerSink, caller: Caller, plan: GenerationPlan
) -> AsyncIterator[Generation]:
    """Run a request for text; in the block its deltas are read and sent.

    Raises:
        ApiError: a limit, or the server, refuses it.
    """
    record = request.record
    record.model = plan.model.card.name
    estimate = sum(max(1, prompt.num_bytes // 4) for prompt in plan.prompts)
    num_output = len(plan.prompts) * plan.num_choices * plan.max_output_tokens
    reservation = await context.limiter.reserve(caller, estimate, num_output)
    try:
        out.add_headers(reservation.headers())
        exchanges = await _open_all(context, request, caller, plan)
    except BaseException:
        await reservation.settle(0, 0)
        raise
    record.upstream = exchanges[0].server
    generation = Generation(plan, exchanges, reservation, request)
    try:
        yield generation
    finally:
        try:
            await generation.close()
        finally:
            await generation.settle()


async def _open_all(context: ApiContext, request: HttpRequest, caller: Caller, plan: GenerationPlan) -> list[Exchange]:
    deadline = asyncio.get_running_loop().time() + plan.timeout_s
    request.span.start_upstream()
    calls = [_call(request, caller, plan, prompt, deadline) for prompt in plan.prompts]
    request.record.upstream_id = calls[0].request_id
    if len(calls) == 1:
        try:
            return [await context.router.open(calls[0])]
        except ApiError as error:
            raise in_client_terms(error, plan.prompts[0].names) from None
    opened = [asyncio.ensure_future(context.router.open(call)) for call in calls]
    try:
        await asyncio.wait(opened, return_when=asyncio.FIRST_EXCEPTION)
        _check_opened(opened, plan.prompts)
    except BaseException:
        await _close_all(opened)
        raise
    return [task.result() for task in opened]


def _check_opened(opened: Sequence[asyncio.Future[Exchange]], prompts: Sequence[PromptCall]) -> None:
    for task, prompt in zip(opened, prompts, strict=True):
        refusal = task.exception() if task.done() else None
        if refusal is not None:
            raise in_client_terms(refusal, prompt.names)


async def _close_all(opened: Sequence[asyncio.Future[Exchange]]) -> None:
    for task in opened:
        task.cancel()
    ended = await asyncio.gather(*opened, return_exceptions=True)
    await asyncio.gather(*(one.close() for one in ended if not isinstance(one, BaseException)), return_exceptions=True)


def _call(
    request: HttpRequest, caller: Caller, plan: GenerationPlan, prompt: PromptCall, deadline: float
) -> GenerateCall:
    values = prompt.values
    if request.span.wants_times:
        values = {**values, tensors.RETURN_PERF_METRICS.name: True}
    return GenerateCall(
        plan.model,
        msgspec.json.encode(values),
        secrets.token_hex(16),
        caller.tenant,
        plan.is_stream,
        prompt.affinity,
        deadline,
        request.span.headers(),
    )
