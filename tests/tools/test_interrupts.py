"""Interrupts: the tests can interrupt what they start, and no command loses one."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trident_tools import main

ROOT = Path(__file__).parents[2]


def test_interrupts_a_child_can_be_interrupted() -> None:
    program = "import time; print('ready', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            child.send_signal(signal.SIGINT)
            assert child.wait(30) == -signal.SIGINT
        finally:
            child.kill()


def test_interrupts_so_it_can_where_the_tests_are_started_with_interrupts_ignored() -> None:
    this = f"{Path(__file__).relative_to(ROOT)}::{test_interrupts_a_child_can_be_interrupted.__name__}"
    words = ["bash", "-c", 'trap "" INT; exec "$@"', "bash", sys.executable, "-m", "pytest", "-q", this]
    outcome = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


_INTERRUPTED_IN_A_DESTRUCTOR = """
import sys, time
from trident_tools import main
class Slow:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(60)
class Simulate:
    add_arguments = staticmethod(lambda parser: None)
    def run(self, args):
        Slow()
        time.sleep(60)
main._load = lambda name: Simulate()
sys.exit(main.main(["simulate"]))
"""


def test_interrupts_an_interrupt_in_a_destructor_reaches_the_command() -> None:
    program = [sys.executable, "-c", _INTERRUPTED_IN_A_DESTRUCTOR]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            assert child.stderr is not None
            assert child.stdout.readline() == b"ready\n"
            child.send_signal(signal.SIGINT)
            assert child.wait(30) == 130
            assert child.stderr.read() == b""
        finally:
            child.kill()


def test_interrupts_the_hook_of_the_caller_is_back_after_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    before, during = sys.unraisablehook, []

    class Simulate:
        def add_arguments(self, parser: argparse.ArgumentParser) -> None:
            """Have no options."""

        def run(self, args: argparse.Namespace) -> int:
            during.append(sys.unraisablehook)
            raise KeyboardInterrupt

    monkeypatch.setattr(main, "_load", lambda _: Simulate())
    assert main.main(["simulate"]) == 130
    assert during != [before]
    assert sys.unraisablehook == before
