"""What a client sent, which may be anything until it has been checked.

Owns the checks that both preprocessing and the core make: the size and encoding of a text, and the names of request
parameters. Never knows what a text is for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trident_ensemble.contract import tensors
from trident_ensemble.contract.errors import RequestError
from trident_ensemble.contract.tensors import TensorSpec

#: The largest guide that a request may send, of the type that may be the largest.
MAX_GUIDE_BYTES = 1 << 18
_BOUND = "this field may have"


def decode_text(field: str, raw: bytes, max_bytes: int, bound: str = _BOUND) -> str:
    """Decode a client's text.

    Args:
        field: the client's name of the field, for errors.
        raw: the bytes that the client sent.
        max_bytes: larger texts are refused without being decoded.
        bound: completes the sentence "N bytes are more than" for a client.

    Raises:
        RequestError: the text is too large, or is not valid UTF-8.
    """
    check_size(field, len(raw), max_bytes, bound)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise RequestError(field, f"is not valid UTF-8: {error.reason} at byte {error.start}; send UTF-8") from None


def check_size(field: str, num_bytes: int, max_bytes: int, bound: str = _BOUND) -> None:
    """Refuse a text that is too large; `decode_text` says what the arguments are.

    Raises:
        RequestError: the text has more than `max_bytes` bytes.
    """
    if num_bytes > max_bytes:
        raise RequestError(field, f"{num_bytes} bytes are more than {bound}; at most {max_bytes}; shorten it")


def check_parameters(parameters: Iterable[str], known: Sequence[TensorSpec]) -> None:
    """Refuse an unknown request parameter. Triton's generate endpoints turn a misspelt field into one.

    Args:
        parameters: the names of a request's parameters.
        known: the inputs that the client may send, for the error.

    Raises:
        RequestError: names the first unknown parameter, and the fields that are known.
    """
    for name in parameters:
        if name not in tensors.KNOWN_PARAMETERS:
            raise RequestError(name, f"unknown field; known are {', '.join(spec.name for spec in known)}")
