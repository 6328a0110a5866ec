"""Texts of clients, which are bytes of any kind until they have been checked.

Owns that check; what the text says is its reader's.
"""

from __future__ import annotations

from trident_ensemble.contract.errors import RequestError


def decode_text(field: str, raw: bytes, max_bytes: int, why: str) -> str:
    """The text that the bytes spell.

    Args:
        field: the tensor, for the error.
        raw: as the client sent them.
        max_bytes: no more than this is looked at.
        why: completes "N bytes are more than", for people.

    Raises:
        RequestError: too large, or not UTF-8.
    """
    check_size(field, len(raw), max_bytes, why)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise RequestError(field, f"not valid UTF-8 (byte {error.start}); send UTF-8") from None


def check_size(field: str, num_bytes: int, max_bytes: int, why: str) -> None:
    """Refuse what is too large, with the words of `decode_text`.

    Raises:
        RequestError: it is.
    """
    if num_bytes > max_bytes:
        raise RequestError(field, f"{num_bytes} bytes are more than {why}; at most {max_bytes}; shorten it")
