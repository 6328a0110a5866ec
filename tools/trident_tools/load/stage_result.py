"""What happened in a stage of a load.

Owns the form in which its course is handed to the figures and reports. Never runs a stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trident_tools.load.client_records import ClientRequestRecord
from trident_tools.load.loads import Load
from trident_tools.load.statistics import MeasuredWindow


@dataclass(frozen=True)
class StageResult:
    """What happened in a stage.

    Args:
        load: that the server was under.
        began: date and time, ISO 8601.
        started_at: the same moment on the records' clock.
        window: that is measured.
        records: every request, those of the ramp too.
        server: what the server counted within the window; None if it was not read.
        cpu_share: of one core, that this process used within the window.
        interrupted: whether it was ended early; requests under way then are in no record.
    """

    load: Load
    began: str
    started_at: float
    window: MeasuredWindow
    records: tuple[ClientRequestRecord, ...]
    server: dict[str, Any] | None
    cpu_share: float
    interrupted: bool
