"""The life of one request for text, whichever endpoint it came by: reserved, sent, read, settled.

Owns the order of these, and that a request is settled with what it has used on every way out. Never reads a body and
never writes an answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from trident_ensemble.contract import tensors
from trident_gateway.api.choices import Choice, Delta
from trident_gateway.api.context import ApiContext, note_model
from trident_gateway.api.generation_plan import GenerationPlan
from trident_gateway.api.interface import AnswerSink, HttpRequest
from trident_gateway.api.opening import open_all
from trident_gateway.api.rows import TokenScores, prompt_scores, rows_of
from trident_gateway.api.usage import TokenMeter, Usage
from trident_gateway.callers import Caller
from trident_gateway.errors import EngineFaultError, UpstreamLostError
from trident_gateway.limits.limiter import Reservation
from trident_gateway.upstream.call_spending import CallSpending
from trident_gateway.upstream.events import GenerateEvent, MalformedEventError, as_list
from trident_gateway.upstream.exchange import Exchange
from trident_gateway.upstream.router import Router
from trident_gateway.upstream.served_model import ReplanError, ServedModel

#: For servers to say what a request has cost that ends early; less than a gateway that ends gives to what it cuts.
_MAX_END_S = 4.0
_TIMES = (tensors.ARRIVAL_TIME, tensors.FIRST_SCHEDULED_TIME, tensors.FIRST_TOKEN_TIME, tensors.LAST_TOKEN_TIME)


class Generation:
    """A request for text while it runs.

    Args:
        plan: what is asked.
        reservation: what it holds of its caller's limits.
        request: takes what the log and the trace show.
    """

    def __init__(self, plan: GenerationPlan, reservation: Reservation, request: HttpRequest) -> None:
        #: What is asked.
        self.plan = plan
        self._exchanges: Sequence[Exchange] = ()
        self._reservation = reservation
        self._request = request
        self._meters = [TokenMeter(echo=plan.echo) for _ in plan.prompts]
        self._spendings = [CallSpending(meter.take) for meter in self._meters]
        num = plan.num_choices
        self._choices = [
            [Choice(at * num + index, plan.answers) for index in range(num)] for at in range(len(plan.prompts))
        ]
        self._reads: dict[asyncio.Task[Sequence[GenerateEvent]], int] = {}
        self._is_reading = False
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

    async def open(self, router: Router, caller: Caller, deadline: float) -> None:
        """Send all prompts, and wait until each of them has begun to be answered.

        Raises:
            ReplanError: it must be planned anew.
            ApiError: a server refuses one.
        """
        self._exchanges = await open_all(router, self._request, caller, self.plan, self._spendings, deadline=deadline)
        self._request.record.upstream = self._exchanges[0].server

    async def read(self) -> list[Delta] | None:
        """Return what has come, all of one read together; None when every answer is complete.

        Raises:
            ApiError: a server was lost, or has failed.
        """
        if len(self._exchanges) == 1:
            position, events = 0, await self._exchanges[0].read()
        else:
            position, events = await self._read_any()
        if events:
            return self._take(position, events)
        if not all(choice.finish_reason for choices in self._choices for choice in choices):
            raise UpstreamLostError
        return None

    async def settle(self) -> None:
        """Pay for what was used; only the first call counts.

        A call that no server has taken costs nothing. Of one that a server has taken and whose prompt it has never
        counted, the input costs what is held for it.
        """
        usage = self.usage
        record = self._request.record
        record.num_input_tokens, record.num_cached_tokens = usage.num_input, usage.num_cached
        record.num_output_tokens = usage.num_output
        reasons = (choice.finish_reason for choices in self._choices for choice in choices)
        record.finish_reasons = tuple(reason for reason in reasons if reason) if self.plan.generates else ()
        is_known = all(
            meter.num_input is not None or not spending.is_taken
            for meter, spending in zip(self._meters, self._spendings, strict=True)
        )
        await self._reservation.settle(usage.num_input if is_known else None, usage.num_output)

    async def close(self) -> None:
        """Let go of the servers; what still runs there is ended, and for a time waited for.

        The last that a server says of a call is what it has cost.
        """
        for task in self._reads:
            task.cancel()
        await asyncio.gather(*self._reads, *(exchange.close() for exchange in self._exchanges), return_exceptions=True)
        for task, position in self._reads.items():
            if not task.cancelled() and task.exception() is None:
                self._meters[position].take(task.result())
        waits = [asyncio.ensure_future(one.wait_until_ended()) for one in self._spendings if not one.has_ended]
        if waits:
            try:
                await asyncio.wait(waits, timeout=_MAX_END_S)
            finally:
                for wait in waits:
                    wait.cancel()

    async def _read_any(self) -> tuple[int, Sequence[GenerateEvent]]:
        """Return the events of the prompt that has some first, and its position; none when all have ended."""
        if not self._is_reading:
            self._is_reading = True
            for position in range(len(self._exchanges)):
                self._begin_read(position)
        while self._reads:
            task = next((task for task in self._reads if task.done()), None)
            if task is None:
                await asyncio.wait(self._reads, return_when=asyncio.FIRST_COMPLETED)
                continue
            position = self._reads.pop(task)
            events = task.result()
            if events:
                self._begin_read(position)
                return position, events
        return 0, ()

    def _begin_read(self, position: int) -> None:
        task = asyncio.get_running_loop().create_task(self._exchanges[position].read())
        self._reads[task] = position

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
    context: ApiContext,
    request: HttpRequest,
    out: AnswerSink,
    caller: Caller,
    plan: GenerationPlan,
    *,
    plan_for: Callable[[ServedModel], GenerationPlan],
) -> AsyncIterator[Generation]:
    """Run a request for text; in the block its deltas are read and sent.

    Args:
        context: what endpoints work with.
        request: the request.
        out: takes the headers that say what is left of limits.
        caller: who has sent it.
        plan: what is asked, for the model that was found.
        plan_for: returns what is asked of another model, where that one cannot be had any more; the plan in force is
            that of the generation.

    Raises:
        ApiError: a limit, or the server, refuses it.
    """
    deadline = asyncio.get_running_loop().time() + plan.timeout_s
    estimate = sum(max(1, prompt.num_bytes // 4) for prompt in plan.prompts)
    num_output = len(plan.prompts) * plan.num_choices * plan.max_output_tokens
    reservation = await context.limiter.reserve(caller, estimate, num_output)
    generation = Generation(plan, reservation, request)
    try:
        out.add_headers(reservation.headers())
        while True:
            try:
                await generation.open(context.router, caller, deadline)
                break
            except ReplanError as error:
                if error.is_fallback and generation.plan.generates:
                    request.record.fallback_from = generation.plan.model.card.name
                note_model(request, error.model)
                # What the other model has done for it meanwhile nobody pays for.
                generation = Generation(plan_for(error.model), reservation, request)
        yield generation
    finally:
        try:
            await generation.close()
        finally:
            await generation.settle()
