"""Processes that do not outlive the one that started them, however that one ends.

Owns how a command is tied to this process. Never starts one and never stops one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence


def tied(command: Sequence[str]) -> list[str]:
    """Return a command line that runs `command`, and has the kernel send it SIGTERM when its parent has ended.

    A parent that is killed cleans nothing up, and a server in a session of its own would go on forever. The program
    `setpriv` becomes the command, so the process id stays the same; a function run between fork and exec could do what
    it does, but not safely in a process with threads. A parent that ended before the kernel was asked is found out by
    the shell, which has another parent then. The kernel goes by the thread that starts the command: let it be the main
    one.
    """
    has_parent = '[ "$PPID" = "$0" ] && exec "$@"'
    return ["setpriv", "--pdeathsig", "TERM", "--", "sh", "-c", has_parent, str(os.getpid()), *command]
