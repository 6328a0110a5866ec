"""The figures of a metrics page, as prometheus_client reads the same page."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from trident_gateway.upstream.metrics_page import CoreFigures, read_page

PAGE = """\
# HELP nv_trt_llm_request_metrics Requests
# TYPE nv_trt_llm_request_metrics gauge
nv_trt_llm_request_metrics{model="core",request_type="waiting",version="1"} 3
nv_trt_llm_request_metrics{model="core",request_type="max",version="1"} 256
nv_trt_llm_request_metrics{version="1",request_type="active",model="core"} 17
nv_trt_llm_request_metrics{model="b_core",request_type="active",version="1"} 1
# TYPE nv_trt_llm_kv_cache_block_metrics gauge
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="core",version="1"} 2.5e-01
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="used",model="core",version="1"} 99
# TYPE nv_pinned_memory_pool_total_bytes gauge
nv_pinned_memory_pool_total_bytes 268435456
"""


def test_read_page_finds_the_figures_of_each_core() -> None:
    assert read_page(PAGE.encode()).cores == {
        "core": CoreFigures(num_active=17, num_waiting=3, kv_fraction=0.25, max_active=256),
        "b_core": CoreFigures(num_active=1),
    }
    values = {
        tuple(sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(PAGE)
        for sample in family.samples
    }
    assert values["1", "core", "fraction"] == 0.25
    assert values["1", "active", "core"] == 17


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_read_page_takes_anything(junk: bytes) -> None:
    assert read_page(junk).cores == {}
    assert read_page(PAGE.encode() + junk + b"\n" + PAGE.encode()).cores["core"].num_waiting == 3


def test_read_page_takes_no_value_for_what_is_none() -> None:
    page = b'nv_trt_llm_request_metrics{model="core",request_type="waiting"} 1e\n'
    assert read_page(page + PAGE.encode()).cores["core"].num_waiting == 3


def test_read_page_puts_the_versions_of_a_core_together() -> None:
    """One takes the place of another, and what has ended leaves its last figures behind."""
    second = PAGE.replace('version="1"', 'version="2"').replace("2.5e-01", "0.5")
    assert read_page((PAGE + second).encode()).cores["core"] == CoreFigures(
        num_active=34, num_waiting=6, kv_fraction=0.5, max_active=256
    )
