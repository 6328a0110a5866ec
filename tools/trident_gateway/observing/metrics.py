"""The gateway's metrics.

Owns what is counted, and the page on which it stands in Prometheus's text format. Counting is adding to a number: there
is no lock, as everything is counted on the event loop. Never lets a client choose a label: models are those of the
catalogue, and of tenants the first ones have a label of their own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from trident_gateway.observing.request_log import RequestRecord

PREFIX = "trident_gateway_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_TENANTS = 200
OTHER = "other"
#: The reason of a stream that has begun and ends with an error.
BROKEN = "error"
_OK = 200

_TTFT_BOUNDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_GAP_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)
_REQUEST_BOUNDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)

Labels = tuple[str, ...]
Series = Iterable[tuple[Labels, float]]


class Histogram:
    """Observations of one series, by upper bounds."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def samples(self) -> Iterator[tuple[str, tuple[str, ...], float]]:
        """Yield the suffix, the further label's value and the number of each line of the series."""
        total = 0
        for bound, count in zip((*map(repr, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            yield "_bucket", (bound,), total
        yield "_sum", (), self._sum
        yield "_count", (), total


class Metrics:
    """Everything that one gateway counts.

    Args:
        num_running: returns the number of requests that are running.
        is_draining: returns whether the gateway asks not to be sent requests.
    """

    def __init__(
        self, num_running: Callable[[], int] = lambda: 0, is_draining: Callable[[], bool] = lambda: False
    ) -> None:
        self._num_running = num_running
        self._is_draining = is_draining
        self._requests: defaultdict[Labels, int] = defaultdict(int)
        self._finishes: defaultdict[Labels, int] = defaultdict(int)
        self._fallbacks: defaultdict[Labels, int] = defaultdict(int)
        self._tokens: defaultdict[Labels, int] = defaultdict(int)
        self._refusals: defaultdict[Labels, int] = defaultdict(int)
        self._gone: defaultdict[Labels, int] = defaultdict(int)
        self._failures: defaultdict[Labels, int] = defaultdict(int)
        self._ttft: defaultdict[Labels, Histogram] = defaultdict(lambda: Histogram(_TTFT_BOUNDS))
        self._gaps: defaultdict[Labels, Histogram] = defaultdict(lambda: Histogram(_GAP_BOUNDS))
        self._seconds: defaultdict[Labels, Histogram] = defaultdict(lambda: Histogram(_REQUEST_BOUNDS))
        self._tenants: set[str] = set()
        self._certificate_end_s: float | None = None
        self._added: list[tuple[str, str, str, tuple[str, ...], Callable[[], Series]]] = []

    def gaps_of(self, model: str, side: str) -> Callable[[float], None]:
        """Return the function that counts the seconds between two parts of a stream of this model on this side."""
        return self._gaps[(model, side)].observe

    def count_request(self, record: RequestRecord) -> None:
        """Count a request that has ended."""
        model, side = record.model, record.side
        self._requests[(record.route, model, str(record.status), side)] += 1
        self._seconds[(record.route, model, side)].observe(record.duration_s)
        if record.ttft_s is not None:
            self._ttft[(model, side)].observe(record.ttft_s)
        for reason in record.finish_reasons:
            self._finishes[(model, reason, side)] += 1
        if record.is_error and record.status == _OK:
            # Its status had left before it broke, so that nothing else tells it from a good answer.
            self._finishes[(model, BROKEN, side)] += 1
        if record.fallback_from:
            self._fallbacks[(record.fallback_from,)] += 1
        if record.client_gone:
            self._gone[(record.client_gone,)] += 1
        if record.num_input_tokens or record.num_output_tokens:
            tenant = self._label_of_tenant(record.tenant)
            self._tokens[(model, tenant, "input")] += record.num_input_tokens
            self._tokens[(model, tenant, "cached")] += record.num_cached_tokens
            self._tokens[(model, tenant, "output")] += record.num_output_tokens

    def count_refusal(self, limit: str) -> None:
        """Count a request that a limit has refused."""
        self._refusals[(limit,)] += 1

    def count_failure(self, part: str) -> None:
        """Count a failure of a part without which requests go on: `request_log`, `traces` or `tls`."""
        self._failures[(part,)] += 1

    def set_certificate_end(self, seconds: float) -> None:
        """Say until when the certificate in use is valid, in seconds since 1970."""
        self._certificate_end_s = seconds

    def add(self, kind: str, name: str, text: str, labels: tuple[str, ...], read: Callable[[], Series]) -> None:
        """Add what somebody else counts, and is read whenever the page is.

        Args:
            kind: `counter` or `gauge`.
            name: without the prefix.
            text: says what it is.
            labels: names of its labels.
            read: returns values of the labels and the number, for each series.
        """
        self._added.append((kind, name, text, labels, read))

    def render(self) -> bytes:
        """Return the page."""
        lines: list[str] = []
        page = _Page(lines)
        page.counter("requests_total", "Requests that have ended", ("route", "model", "code", "side"), self._requests)
        page.counter("finishes_total", "Answers, by why they ended", ("model", "reason", "side"), self._finishes)
        text = "Requests for text that the canary could not take"
        page.counter("canary_fallbacks_total", text, ("model",), self._fallbacks)
        page.histogram("ttft_seconds", "Time to the first part of a stream", ("model", "side"), self._ttft)
        page.histogram("itl_seconds", "Time between two parts of a stream", ("model", "side"), self._gaps)
        page.histogram("request_seconds", "Duration of requests", ("route", "model", "side"), self._seconds)
        page.counter("tokens_total", "Tokens, as the engine counts them", ("model", "tenant", "kind"), self._tokens)
        page.gauge("inflight", "Requests that are running", self._num_running())
        page.counter("limit_refusals_total", "Requests that a limit has refused", ("kind",), self._refusals)
        page.counter("client_gone_total", "Requests whose client has left", ("phase",), self._gone)
        page.counter("failures_total", "Failures that cost no request anything", ("part",), self._failures)
        page.gauge("draining", "1 while the gateway asks not to be sent requests", self._is_draining())
        if self._certificate_end_s is not None:
            text = "End of the certificate, in seconds since 1970"
            page.gauge("certificate_end_seconds", text, self._certificate_end_s)
        for kind, name, text, labels, read in self._added:
            page.family(kind, name, text, labels, read())
        return "".join(lines).encode()

    def _label_of_tenant(self, tenant: str) -> str:
        if tenant in self._tenants:
            return tenant
        if len(self._tenants) < MAX_TENANTS:
            self._tenants.add(tenant)
            return tenant
        return OTHER


class _Page:
    """Lines in Prometheus's text format."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def family(self, kind: str, name: str, text: str, labels: tuple[str, ...], series: Series) -> None:
        self._head(name, text, kind)
        for values, number in series:
            self._line(name, labels, values, float(number) if kind == "gauge" else number)

    def counter(self, name: str, text: str, labels: tuple[str, ...], series: dict[Labels, int]) -> None:
        self.family("counter", name, text, labels, series.items())

    def gauge(self, name: str, text: str, number: float) -> None:
        self.family("gauge", name, text, (), [((), number)])

    def histogram(self, name: str, text: str, labels: tuple[str, ...], series: dict[Labels, Histogram]) -> None:
        self._head(name, text, "histogram")
        for values, histogram in series.items():
            for suffix, bound, number in histogram.samples():
                self._line(name + suffix, (*labels, *("le" for _ in bound)), (*values, *bound), number)

    def _head(self, name: str, text: str, kind: str) -> None:
        self._lines.append(f"# HELP {PREFIX}{name} {text}.\n# TYPE {PREFIX}{name} {kind}\n")

    def _line(self, name: str, labels: tuple[str, ...], values: Labels, number: float) -> None:
        pairs = ",".join(f'{label}="{_escaped(value)}"' for label, value in zip(labels, values, strict=True))
        self._lines.append(f"{PREFIX}{name}{{{pairs}}} {number!r}\n" if pairs else f"{PREFIX}{name} {number!r}\n")


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
