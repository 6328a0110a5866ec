"""What went wrong, out of tritonserver's log.

Owns which lines of the log matter to people. Never writes to it.
"""

from __future__ import annotations

import re
from pathlib import Path

_ERROR = re.compile(r'^E\d{4} \S+ \d+ \S+:\d+\] "?(?P<text>.*?)"?$')
_FATAL = re.compile(r"^error: (?P<text>.*)$")
#: Said at every start on a machine without a GPU.
_HARMLESS = ("CudaDriverHelper has not been initialized", "CUDA driver version", "NVML")
_READ_BYTES = 1 << 20


def last_errors(log: Path, limit: int = 6) -> list[str]:
    """The last errors in a log, oldest first, one line each, without repetitions."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _READ_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    errors: dict[str, None] = {}
    for line in text.splitlines():
        match = _ERROR.match(line) or _FATAL.match(line)
        if match and not any(harmless in line for harmless in _HARMLESS):
            message = " ".join(match["text"].replace("\\n", "\n").split())
            errors.pop(message, None)
            errors[message] = None
    return list(errors)[-limit:]
