"""What the gateway knows of the models that servers serve, and what a call to one of them consists of.

Owns plain values, the error that a call belongs to another model by now, and how the JSON of a call is put together.
Never sends anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from trident_ensemble.contract.model_card import ModelCard
from trident_gateway.errors import Headers
from trident_gateway.upstream.call_spending import CallSpending
from trident_gateway.upstream.sides import STABLE


@dataclass(frozen=True)
class ServedModel:
    """One model that clients may ask for.

    Args:
        card: what its build wrote about it.
        ensemble: the name of its ensemble in the model repository.
        preprocessing: the name of the model that makes token ids of its prompts.
        core: the name of the model that generates.
        side: of the servers that have it.
        fallback: what the stable side has under the name that was asked for, where this is the canary's.
    """

    card: ModelCard
    ensemble: str
    preprocessing: str
    core: str = "core"
    side: str = STABLE
    fallback: ServedModel | None = None


class ReplanError(Exception):
    """A call that no server has answered, and that must be put together anew, for another model.

    It was put together for a card that may differ: for the canary's, which cannot take it, or for one that has since
    been replaced. As it is it could mean something else there.

    Args:
        model: that takes the place of the call's.
        is_fallback: it is the stable side's, since the canary cannot take the call.
    """

    def __init__(self, model: ServedModel, *, is_fallback: bool = False) -> None:
        super().__init__(model.card.name)
        self.model = model
        self.is_fallback = is_fallback


@dataclass(frozen=True)
class GenerateCall:
    """One request for text.

    Args:
        model: which model is asked.
        body: a JSON object of the ensemble's input tensors, without `id`, `tenant` and `stream`: these are added.
        request_id: names the request at the server; no two running requests of a tenant may have the same.
        tenant: whose request it is.
        streaming: one event for each response as it comes; otherwise one event, or one for each sequence.
        affinity: calls with equal bytes prefer the same server, where their common prefix is cached; b"" for no
            preference.
        deadline: when the client's timeout passes, in the time of the event loop; None for never.
        headers: further headers of the HTTP request, such as a traceparent.
        spending: is told what the answer says of its costs after nobody reads it any more.
    """

    model: ServedModel
    body: bytes
    request_id: str
    tenant: str
    streaming: bool
    affinity: bytes = b""
    deadline: float | None = None
    headers: Headers = ()
    spending: CallSpending = field(default_factory=CallSpending, compare=False)


def render_call(call: GenerateCall) -> bytes:
    """Return the JSON of a call."""
    assert call.body[:1] == b"{"
    identity = msgspec.json.encode({"id": call.request_id, "tenant": call.tenant, "stream": call.streaming})
    rest = call.body[1:].lstrip()
    return identity[:-1] + (b"}" if rest == b"}" else b"," + rest)


def render_stop(call: GenerateCall) -> bytes:
    """Return the JSON of the call that ends another."""
    return msgspec.json.encode({"id": call.request_id, "tenant": call.tenant, "stop": True})
