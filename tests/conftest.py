"""What holds for every test: an interrupt reaches it, and the processes that it starts; and it computes on one core.

Owns how this process treats signals, how many threads compute in it, and that slowness alone fails no randomized test.
Never a fixture: these belong to the folders that use them.
"""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

# A shell that starts a command in the background (`make test &`) has it ignore SIGINT, and so do all processes that it
# starts in turn. A handler ends that: what has one here has the default in a new process.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The models of the tests are tiny. Where PyTorch divides their operations among threads, these spend several times as
# long waiting for each other as computing, and far more on a machine that has other work. PyTorch reads this once, when
# it is imported, which is later.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Machines that do other work draw and run an example ten times as slowly as others. That is no fault of what is tested.
settings.register_profile("trident", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("trident")
