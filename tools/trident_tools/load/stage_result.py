"""The course of a stage of a load.

Owns the form in which it is handed to the figures and reports. Never runs a stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trident_tools.load.client_records import ClientRequestRecord
from trident_tools.load.loads import Load
from trident_tools.load.statistics import MeasuredWindow


@dataclass(frozen=True)
class StageResult:
    """The course of one stage.

    Args:
        load: the load that the server was under.
        began: date and time of the beginning, ISO 8601.
        started_at: the same moment on the records' clock.
        window: the window that was measured.
        records: a record of every request, also of the ramp.
        server: what the server counted within the window; None if it was not read.
        cpu_share: share of one core that this process used within the window.
        interrupted: whether the stage was ended early; requests that ran then have no record.
    """

    load: Load
    began: str
    started_at: float
    window: MeasuredWindow
    records: tuple[ClientRequestRecord, ...]
    server: dict[str, Any] | None
    cpu_share: float
    interrupted: bool
