"""Every error Trident raises on purpose, and the one table that maps it to Triton's error codes.

    TridentError
    ├── RequestError          a request that cannot be served as it is; names the field
    ├── UnavailableError      the server cannot take the request now; try again later
    │   ├── QueueFullError    as many requests or tokens wait as may wait
    │   ├── DeadlineError     the request's timeout has passed, or cannot be kept
    │   └── DrainingError     the server is shutting down
    ├── CancelledError        the client went away, or asked to stop
    ├── ConfigError           a model's configuration has an unknown or malformed key
    ├── ArtifactError         an engine folder is damaged or was built for something else; names the field
    ├── CheckpointError       a checkpoint that cannot be built; names what is unsupported or missing
    ├── BuildError            an engine that cannot be built as asked; names the option
    │   └── PlanError         limits and memory do not fit; gives the numbers
    ├── EngineError           the compiled engine failed during a step
    │   └── EngineLostError   it cannot compute any other step either
    ├── InternalError         an unforeseen failure; the log says what it was, the client only that it was
    └── ServerError           tritonserver cannot be found, started or kept alive
        └── ServerDiedError   it had been started, and died

Owns no text beyond the prefix; the code that raises says what was wrong and what the limit is. Never catches anything.
"""

from __future__ import annotations

import re


class TridentError(Exception):
    """The root of all errors below."""


class RequestError(TridentError):
    """A bad request.

    Args:
        field: the tensor or parameter at fault.
        problem: what is wrong with it, and the limit it broke.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class UnavailableError(TridentError):
    """The request is valid, but cannot be taken now."""


class QueueFullError(UnavailableError):
    """The waiting queue is at its bound."""


class DeadlineError(UnavailableError):
    """The answer would come, or has come, too late."""


class DrainingError(UnavailableError):
    """The server finishes what it has and takes nothing new."""


class CancelledError(TridentError):
    """The request was given up by its client."""


class ConfigError(TridentError):
    """A model configuration that Trident does not understand; the load fails by the key's name."""


class ArtifactError(TridentError):
    """An engine folder that does not match what is asked of it."""


class CheckpointError(TridentError):
    """A checkpoint that cannot be compiled."""


class BuildError(TridentError):
    """An engine that cannot be built as it is asked for, or not here."""


class PlanError(BuildError):
    """Limits that do not fit in memory, or contradict one another."""


class EngineError(TridentError):
    """A step of the compiled engine failed."""


class EngineLostError(EngineError):
    """The compiled engine failed for good: a device or a part of it is gone."""


class InternalError(TridentError):
    """An unforeseen failure inside the server; its text is for clients, its cause for the log."""


class ServerError(TridentError):
    """tritonserver is missing, did not become ready, or died."""


class ServerDiedError(ServerError):
    """tritonserver, or the process of a model in it, has died.

    Args:
        message: what died, and how.
        ready_s: seconds for which the server had been ready; None if it never was.
        has_crashed: what died was ended by a signal, not by an exit status of its own.
    """

    def __init__(self, message: str, *, ready_s: float | None, has_crashed: bool) -> None:
        super().__init__(message)
        self.ready_s = ready_s
        self.has_crashed = has_crashed


#: The names are attributes of `triton_python_backend_utils.TritonError`; the first match of an error's class wins.
TRITON_CODES: tuple[tuple[type[TridentError], str], ...] = (
    (RequestError, "INVALID_ARG"),
    (UnavailableError, "UNAVAILABLE"),
    (CancelledError, "CANCELLED"),
    (TridentError, "INTERNAL"),
)


def triton_code(error: Exception) -> str:
    """Return the name of Triton's code for an error; INTERNAL for errors that are not ours."""
    return next((code for kind, code in TRITON_CODES if isinstance(error, kind)), "INTERNAL")


def wire_message(error: Exception) -> str:
    """Return what a client reads: the code in brackets, then the error's own text.

    Triton loses an error's code in places (its generate endpoints always answer 400, business logic scripting keeps
    only the text), so the text carries it.
    """
    # A quotation from a client may hold half a surrogate pair, which cannot be encoded.
    return f"[{triton_code(error)}] {error}".encode(errors="backslashreplace").decode()


def code_of(message: str) -> str:
    """Return the code in a message made by `wire_message`, wherever Triton has put it; INTERNAL if there is none."""
    found = re.search(r"\[(INVALID_ARG|UNAVAILABLE|CANCELLED|INTERNAL)\]", message)
    return found.group(1) if found else "INTERNAL"
