"""The endpoints `/v1/models` and `/v1/models/{id}`, and the refusal of `/v1/embeddings`.

Owns how a model is shown. A caller sees the models that it may use and no others. Never asks a server.
"""

from __future__ import annotations

from typing import Any

import msgspec

from trident_gateway.api.context import ApiContext
from trident_gateway.api.interface import AnswerSink, HttpRequest
from trident_gateway.errors import NotFoundError
from trident_gateway.upstream.served_model import ServedModel

_OWNER = "trident"


class ModelEndpoints:
    """The endpoints that show models.

    Args:
        context: what endpoints work with.
    """

    def __init__(self, context: ApiContext) -> None:
        self._context = context

    async def list(self, request: HttpRequest, out: AnswerSink) -> None:
        """Answer with all models of the caller, each under its name and its aliases."""
        caller = await self._context.admit(request)
        models = [_shown(served, name) for name, served in self._context.models_of(caller)]
        await out.send_json(msgspec.json.encode({"object": "list", "data": models}))

    async def get(self, request: HttpRequest, out: AnswerSink) -> None:
        """Answer with one model, of which headers and a field of our own say more."""
        caller = await self._context.admit(request)
        name = request.path_params["model"]
        served = self._context.find(request, caller, name)
        out.add_headers(
            [
                (b"x-trident-digest", served.card.digest.encode("ascii", "replace")),
                (b"x-trident-max-seq-len", b"%d" % served.card.max_seq_len),
            ]
        )
        own = {"digest": served.card.digest, "max_seq_len": served.card.max_seq_len, "side": served.side}
        await out.send_json(msgspec.json.encode({**_shown(served, name), "x_trident": own}))

    async def refuse_embeddings(self, request: HttpRequest, _out: AnswerSink) -> None:
        """Refuse to make embeddings."""
        await self._context.admit(request)
        raise NotFoundError("The models here generate text; there are no embeddings.")


def _shown(served: ServedModel, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": served.card.created, "owned_by": _OWNER}
