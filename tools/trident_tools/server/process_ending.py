"""How a process ended, in words.

Owns the wording. Never looks at a process.
"""

from __future__ import annotations

import signal


def describe_ending(exit_code: int) -> str:
    """Return a phrase for an exit code as `subprocess` has it: negative for the signal that ended the process."""
    if exit_code >= 0:
        return f"exit status {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:  # a real-time signal
        return f"killed by signal {-exit_code}"
