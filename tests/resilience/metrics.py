"""What a gateway's metrics say.

Owns how one value is read. Never waits.
"""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tests.gateway.process import GatewayProcess


async def metric(gateway: GatewayProcess, name: str, **labels: str) -> float:
    """Return the sum of the values of a metric that have these labels, among others; 0 where there are none."""
    text = (await gateway.ask("/metrics", private=True)).body.decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"trident_gateway_{name}" and labels.items() <= sample.labels.items()
    )
