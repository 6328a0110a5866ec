"""What the OpenVINO engine cannot compute, and why.

Owns the table. Never imports OpenVINO, so that it can be shown anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping

from trident_compiler.families.features import Feature

REFUSALS: Mapping[Feature, str] = {
    Feature.SOFT_CAP: "its paged attention has no bound on scores",
    Feature.ALIBI_WITH_WINDOW: "its paged attention drops ALiBi where there is a window",
}
