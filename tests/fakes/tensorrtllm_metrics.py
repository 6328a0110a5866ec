"""The page of metrics of a tritonserver with TensorRT-LLM's backend.

Owns which metrics it has, by tensorrtllm_backend's own names: no histogram of latencies, and nothing of ours (nv_llm_*)
but the two of lengths. Never a real server.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.ports import free_ports

MODEL = "tensorrt_llm"
_TYPE = "inflight_batcher_specific_metric"


def page(scrape: int, *, waiting: int = 2, fraction: float = 0.5) -> str:
    """Return the page at the time of a scrape: between two of them, 40 steps and 10 requests."""
    gauges: dict[tuple[str, str], dict[str, float]] = {
        ("nv_trt_llm_request_metrics", "request_type"): {
            "active": 6 + waiting, "max": 8, "scheduled": 6, "context": 1, "waiting": waiting,
        },
        ("nv_trt_llm_runtime_memory_metrics", "memory_type"): {"cpu": 4096, "gpu": 1 << 30, "pinned": 1 << 20},
        ("nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type"): {
            "max": 1000, "free": 1000 * (1 - fraction), "used": 1000 * fraction, "tokens_per": 64,
            "reused": 30 * scrape, "fraction": fraction,
        },
        ("nv_trt_llm_inflight_batcher_metrics", _TYPE): {
            "total_context_tokens": 512, "generation_requests": 5, "micro_batch_id": 0, "paused_requests": 0,
        },
        ("nv_trt_llm_general_metrics", "general_type"): {"timestamp": 1_800_000_000, "iteration_counter": 40 * scrape},
    }  # fmt: skip
    lines = []
    for (family, label), values in gauges.items():
        lines += [f"# HELP {family} TRT LLM metrics", f"# TYPE {family} gauge"]
        lines += [f'{family}{{model="{MODEL}",{label}="{kind}",version="1"}} {value}' for kind, value in values.items()]
    for family, length in (("nv_llm_input_token_len", 50), ("nv_llm_output_token_len", 100)):
        lines += [f"# HELP {family} tokens", f"# TYPE {family} histogram"]
        for le in ("10", "50", "100", "500", "1000", "+Inf"):
            count = 10 * scrape if length <= float(le) else 0
            lines.append(f'{family}_bucket{{model="{MODEL}",version="1",le="{le}"}} {count}')
        lines.append(f'{family}_sum{{model="{MODEL}",version="1"}} {10 * scrape * length}')
        lines.append(f'{family}_count{{model="{MODEL}",version="1"}} {10 * scrape}')
    lines += ["# HELP nv_inference_request_success well", "# TYPE nv_inference_request_success counter"]
    lines.append(f'nv_inference_request_success{{model="{MODEL}",version="1"}} {10 * scrape}')
    lines += ["# HELP nv_inference_request_failure badly", "# TYPE nv_inference_request_failure counter"]
    for reason in ("OTHER", "BACKEND", "CANCELED", "REJECTED"):
        lines.append(f'nv_inference_request_failure{{model="{MODEL}",reason="{reason}",version="1"}} 0')
    return "\n".join(lines) + "\n"


@contextmanager
def serving_pages(**figures: float) -> Iterator[str]:
    """Yield host and port of a server of such pages, of which each is a scrape later than the last."""
    scrape = 0

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal scrape
            scrape += 1
            content = page(scrape, **figures).encode()  # type: ignore[arg-type]
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    (port,) = free_ports(1)
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.shutdown()
        thread.join(60)
        server.server_close()
