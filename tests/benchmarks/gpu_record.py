"""What `make bench-gpu` has measured so far.

Owns what becomes of a part that fails, and the file: it is whole after each part, so that nothing measured is lost.
Never measures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Outcome = dict[str, Any]


class Record:
    """The figures, by part; those of a part that failed are what it had until then.

    Args:
        figures: known beforehand.
        file: where they are written, as JSON; None for nowhere.

    Raises:
        OSError: the file cannot be written, found out before anything is measured.
    """

    def __init__(self, figures: Outcome, file: Path | None) -> None:
        self.outcome: Outcome = {**figures, "left out": {}}
        self._file = file
        self._write()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """One part; where it fails, the reason stands under `left out`, and the next part follows."""
        try:
            yield
        except Exception as error:  # whatever it is, the other parts may still run
            self.outcome["left out"][name] = f"{type(error).__name__}: {error}"
        finally:
            self._write()

    def _write(self) -> None:
        if self._file is not None:
            self._file.write_text(json.dumps(self.outcome, indent=2))
