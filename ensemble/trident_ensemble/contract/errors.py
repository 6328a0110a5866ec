"""Every error Trident raises on purpose, the codes and reasons by which programs tell them apart, and their wire form.

    TridentError
    ├── RequestError            a request that cannot be served as it is; names the field
    │   ├── ContextLengthError  its prompt, or prompt and output together, are longer than the engine holds
    │   └── InvalidGuideError   its guide is malformed, impossible or too large
    ├── UnavailableError        the server cannot take the request now; try again later
    │   ├── QueueFullError      as many requests or tokens wait as may wait
    │   ├── DeadlineError       the request's timeout has passed
    │   │   └── TooLateError    it cannot be kept
    │   └── DrainingError       the server is shutting down
    ├── CancelledError      the client went away, or asked to stop
    ├── ConfigError         a model's configuration has an unknown or malformed key
    ├── ArtifactError       an engine folder is damaged or was built for something else; names the field
    ├── CheckpointError     a checkpoint that cannot be built; names what is unsupported or missing
    ├── BuildError          an engine that cannot be built as asked; names the option
    │   └── PlanError       limits and memory do not fit; gives the numbers
    ├── EngineError         the compiled engine failed during a step
    │   └── EngineLostError it cannot compute any other step either
    ├── InternalError       an unforeseen failure; the log says what it was, the client only that it was
    └── ServerError         tritonserver cannot be found, started or kept alive
        └── ServerDiedError it had been started, and died

Owns no text beyond the prefix; the code that raises says what was wrong and what the limit is. Never catches anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar


class TridentError(Exception):
    """The root of all errors below.

    Attributes:
        reason: tells errors of one code apart, for programs; empty where the code says enough.
    """

    reason: ClassVar[str] = ""


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


class ContextLengthError(RequestError):
    """A prompt that is longer than the engine holds, by itself or with the output that is asked for."""

    reason = "context_length"


class InvalidGuideError(RequestError):
    """A guide that is malformed, that nothing can follow, or that is too large."""

    reason = "invalid_guide"


class UnavailableError(TridentError):
    """The request is valid, but cannot be taken now."""


class QueueFullError(UnavailableError):
    """The waiting queue is at its bound."""

    reason = "queue_full"


class DeadlineError(UnavailableError):
    """The request's timeout has passed."""

    reason = "timeout"


class TooLateError(DeadlineError):
    """The request's timeout would pass before its first token could come."""

    reason = "too_late"


class DrainingError(UnavailableError):
    """The server finishes what it has and takes nothing new."""

    reason = "draining"


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


#: Every reason that there is, with the code of its errors.
REASONS = {
    "context_length": "INVALID_ARG", "invalid_guide": "INVALID_ARG",
    "queue_full": "UNAVAILABLE", "timeout": "UNAVAILABLE", "too_late": "UNAVAILABLE", "draining": "UNAVAILABLE",
}  # fmt: skip


@dataclass(frozen=True)
class WireError:
    """An error as a client reads it.

    Args:
        code: the name of Triton's code; INTERNAL if the message is not one of ours.
        reason: one of `REASONS`, or empty.
        field: the tensor or parameter at fault, or empty.
        text: what was wrong, without the other three.
    """

    code: str
    reason: str
    field: str
    text: str


def wire_message(error: Exception) -> str:
    """Return what a client reads: the code in brackets, the reason if there is one, then the error's own text.

    Triton loses an error's code in places (its generate endpoints always answer 400, business logic scripting keeps
    only the text), so the text carries it.
    """
    reason = f"{error.reason}: " if isinstance(error, TridentError) and error.reason else ""
    # A quotation from a client may hold half a surrogate pair, which cannot be encoded.
    return f"[{triton_code(error)}] {reason}{error}".encode(errors="backslashreplace").decode()


def read_wire_message(message: str) -> WireError:
    """Return what a message says that was made by `wire_message`, wherever Triton has put it."""
    found = _CODE.search(message)
    if found is None:
        return WireError("INTERNAL", "", "", message)
    code, text = found[1], message[found.end() :]
    reason, _, rest = text.partition(": ")
    # A bad request has a field behind its reason; without one, this is a field that a client has named like a reason.
    if REASONS.get(reason) == code and (code != "INVALID_ARG" or _FIELD.match(rest)):
        text = rest
    else:
        reason = ""
    of_field = _FIELD.match(text)
    return WireError(code, reason, of_field[1] if of_field else "", text[of_field.end() :] if of_field else text)


_CODE = re.compile(rf"\[({'|'.join(code for _, code in TRITON_CODES)})\] ")
_FIELD = re.compile(r"([^\s:]+): ")
