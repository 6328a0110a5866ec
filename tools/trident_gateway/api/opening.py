"""The calls to the servers that a request for text needs.

Owns how they are made, that all of them open or none, and what a refusal says to the client. Never reads an answer.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence

import msgspec

from trident_ensemble.contract import tensors
from trident_gateway.api.generation_plan import GenerationPlan, PromptCall
from trident_gateway.api.interface import HttpRequest
from trident_gateway.api.translate import in_client_terms
from trident_gateway.callers import Caller
from trident_gateway.errors import ApiError
from trident_gateway.upstream.call_spending import CallSpending
from trident_gateway.upstream.exchange import Exchange
from trident_gateway.upstream.router import Router
from trident_gateway.upstream.served_model import GenerateCall


async def open_all(
    router: Router,
    request: HttpRequest,
    caller: Caller,
    plan: GenerationPlan,
    spendings: Sequence[CallSpending],
    *,
    deadline: float,
) -> list[Exchange]:
    """Open the exchanges of a plan, one for each prompt, in their order; all of them or none.

    Args:
        router: knows the servers.
        request: is told of the calls.
        caller: for whom they are.
        plan: what is asked.
        spendings: one for each prompt, told what becomes of its call.
        deadline: of all of it, in the time of the event loop.

    Raises:
        ReplanError: it must be planned anew.
        ApiError: a server refuses a prompt, in the client's own terms.
    """
    request.span.start_upstream()
    calls = [
        _call(request, caller, plan, prompt, deadline=deadline, spending=spending)
        for prompt, spending in zip(plan.prompts, spendings, strict=True)
    ]
    request.record.upstream_id = calls[0].request_id
    if len(calls) == 1:
        try:
            return [await router.open(calls[0])]
        except ApiError as error:
            raise in_client_terms(error, plan.prompts[0].names) from None
    opened = [asyncio.ensure_future(router.open(call)) for call in calls]
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
    request: HttpRequest,
    caller: Caller,
    plan: GenerationPlan,
    prompt: PromptCall,
    *,
    deadline: float,
    spending: CallSpending,
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
        spending,
    )
