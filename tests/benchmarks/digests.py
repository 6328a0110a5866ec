"""What checking an engine's files costs at each load: one core in one chain, as it was, and all cores in pieces.

`python -m tests.benchmarks.digests [--gib 4]`
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.commands import work_folder
from trident_ensemble.contract.digests import file_digests
from trident_tools.load.option_values import whole_number


def chain(path: Path) -> None:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 24):
            sha.update(piece)


def main() -> None:
    """Hash one file in turn both ways, and show medians and what 16 GB take."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.digests", description=__doc__)
    parser.add_argument(
        "--gib", type=whole_number(1), default=4, help="size of the file, which the page cache should hold"
    )
    parser.add_argument("--rounds", type=whole_number(1), default=5)
    args = parser.parse_args()
    with work_folder() as folder:
        path = folder / "weights"
        with path.open("wb") as file:
            for _ in range(args.gib * 64):
                file.write(os.urandom(1 << 24))
        ways: dict[str, Callable[[], object]] = {
            "one core, one chain": lambda: chain(path),
            "one core, pieces": lambda: file_digests([path], threads=1),
            f"{len(os.sched_getaffinity(0))} cores, pieces": lambda: file_digests([path]),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.rounds):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                rates[name].append(path.stat().st_size / (time.perf_counter() - start) / 1e9)
    for name, values in rates.items():
        rate = statistics.median(values)
        print(f"{name:<22} {rate:5.2f} GB/s, 16 GB in {16 / rate:4.1f} s")


if __name__ == "__main__":
    main()
