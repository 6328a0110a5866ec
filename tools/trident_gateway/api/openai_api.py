"""All endpoints of the API, put together.

Owns the list of paths. Never reads a body.
"""

from __future__ import annotations

from trident_gateway.api.chat import ChatEndpoint
from trident_gateway.api.completions import CompletionEndpoint
from trident_gateway.api.context import ApiContext
from trident_gateway.api.interface import Endpoint
from trident_gateway.api.models import ModelEndpoints
from trident_gateway.api.responses.endpoint import ResponsesEndpoint
from trident_gateway.api.tokenization import TokenizationEndpoints


def endpoints(context: ApiContext) -> tuple[Endpoint, ...]:
    """Return every endpoint of the API."""
    models, tokenization = ModelEndpoints(context), TokenizationEndpoints(context)
    return (
        Endpoint("GET", "/v1/models", models.list),
        Endpoint("GET", "/v1/models/{model:path}", models.get),
        Endpoint("POST", "/v1/chat/completions", ChatEndpoint(context).handle),
        Endpoint("POST", "/v1/completions", CompletionEndpoint(context).handle),
        Endpoint("POST", "/v1/responses", ResponsesEndpoint(context).handle),
        Endpoint("POST", "/tokenize", tokenization.tokenize),
        Endpoint("POST", "/detokenize", tokenization.detokenize),
        Endpoint("POST", "/v1/embeddings", models.refuse_embeddings),
    )


__all__ = ["ApiContext", "endpoints"]
