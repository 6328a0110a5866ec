"""The errors in tritonserver's log.

Owns which lines of the log matter to people, and which of them show a transient failure. Never writes to the log.
"""

from __future__ import annotations

import re
from pathlib import Path

_ERROR = re.compile(r'^E\d{4} \S+ \d+ \S+:\d+\] "?(?P<text>.*?)"?$')
#: Said at the end of a start that failed, and by the C++ runtime when an exception ends a process.
_FATAL = re.compile(r"^(?:error: |\s*(?=terminate called|what\(\):))(?P<text>.*)$")
#: Said at every start on a machine without a GPU.
_HARMLESS = ("CudaDriverHelper has not been initialized", "CUDA driver version", "NVML")
#: Failures of a start that the next one need not have:
#: - the Python backend meets a mutex in shared memory that is not initialized yet (seen once in about fifty starts on a
#:   busy machine; triton-inference-server/tensorrtllm_backend issues 349, 354 and 521);
#: - a port that was free when this command looked has been taken since, or is held by a process that is just ending.
_TRANSIENT = re.compile(r"boost::interprocess::lock_exception|Socket '\S+' already in use")
_MOST_ERRORS = 1000
_READ_BYTES = 1 << 20


class TritonLog:
    """The log of one server after another, in one file.

    Args:
        path: the file; None where the log is not kept, so that nothing is known about it.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._begin = 0

    def begin(self) -> None:
        """Begin the log of the next server; earlier lines are not looked at again."""
        self._begin = self._size()

    def is_empty(self) -> bool:
        """Return whether no server has logged anything."""
        return self._size() == 0

    def last_errors(self, limit: int = 6) -> list[str]:
        """Return the server's last errors, oldest first, one line each, without repetitions."""
        errors: dict[str, None] = {}
        for line in self._read().splitlines():
            match = _ERROR.match(line) or _FATAL.match(line)
            if match and not any(harmless in line for harmless in _HARMLESS):
                message = " ".join(match["text"].replace("\\n", "\n").split())
                errors.pop(message, None)
                errors[message] = None
        return list(errors)[-limit:]

    def last_lines(self, limit: int = 3) -> list[str]:
        """Return the last lines that are not empty, whatever they say."""
        return [line.strip() for line in self._read().splitlines() if line.strip()][-limit:]

    def tells_of_transient_failure(self) -> bool | None:
        """Return whether the server failed for a transient reason; None if nothing is known about it."""
        if self.path is None:
            return None
        return any(_TRANSIENT.search(error) for error in self.last_errors(_MOST_ERRORS))

    def _size(self) -> int:
        try:
            return self.path.stat().st_size if self.path else 0
        except OSError:
            return 0

    def _read(self) -> str:
        if self.path is None:
            return ""
        try:
            with self.path.open("rb") as file:
                file.seek(max(self._begin, self._size() - _READ_BYTES))
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""
