"""Unforeseen failures: one sentence for the client, the details for the server's log.

An exception's text may hold paths, addresses and others' data, so a client never reads it. Owns the log line and the
sentence's end. Never catches anything and never decides who fails.
"""

from __future__ import annotations

import logging

from trident_ensemble.contract.errors import InternalError

_log = logging.getLogger(__name__)


def internal_error(what: str, cause: BaseException) -> InternalError:
    """Log an unforeseen failure with its traceback, and return the error that its client gets.

    Args:
        what: what was being done, as a clause that a client may read: "the request could not be read".
        cause: what was raised. Catch `BaseException` where a library written in Rust is called: its panics are not
            an `Exception`.
    """
    log_failure(what, cause)
    error = InternalError(f"{what}; the server's log says why")
    error.__cause__ = cause
    return error


def log_failure(what: str, cause: BaseException) -> None:
    """Log a failure with its traceback."""
    _log.error("%s: %r", what, cause, exc_info=cause)
