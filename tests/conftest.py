"""What holds for every test: an interrupt reaches it, and the processes that it starts.

Owns how this process treats signals. Never a fixture: these belong to the folders that use them.
"""

from __future__ import annotations

import signal

# A shell that starts a command in the background (`make test &`) has it ignore SIGINT, and so do all processes that it
# starts in turn. A handler ends that: what has one here has the default in a new process.
signal.signal(signal.SIGINT, signal.default_int_handler)
