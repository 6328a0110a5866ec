"""Chat messages as clients send them.

Owns what counts as a list of messages. Never renders them; which roles exist and in which order is the template's.
"""

from __future__ import annotations

import json
from typing import Any

from trident_ensemble import tensors
from trident_ensemble.errors import RequestError

Message = dict[str, Any]
FIELD = tensors.MESSAGES.name
_EXAMPLE = tensors.MESSAGES.doc.partition(": ")[2]


def parse_messages(text: str) -> list[Message]:
    """The messages in a JSON text.

    Every message is an object with the texts `role` and `content`; whatever else it has is left to the template.

    Raises:
        RequestError: not JSON, or not that; says which message.
    """
    try:
        messages = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(FIELD, f"not JSON ({error}); send {_EXAMPLE}") from None
    if not isinstance(messages, list) or not messages:
        raise RequestError(FIELD, f"must be a list of at least one message; send {_EXAMPLE}")
    for place, message in enumerate(messages):
        if not isinstance(message, dict):
            raise RequestError(FIELD, f"[{place}] must be an object with role and content; send {_EXAMPLE}")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise RequestError(FIELD, f"[{place}].{key} must be a text; send {_EXAMPLE}")
    return messages
