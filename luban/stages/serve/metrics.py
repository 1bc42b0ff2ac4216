"""What the server counts, as Prometheus reads it (text format 0.0.4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ENDPOINTS = (
    "/predict", "/explain", "/docs", "/openapi.json", "/healthz", "/readyz", "/metrics", "/v1/models", "/v1/completions",
    "/v1/chat/completions", "/v1/embeddings",
)  # fmt: skip


class Histogram:
    """Counts of values up to each bound."""

    def __init__(self, bounds: Sequence[float]):
        self.bounds, self.counts, self.sum, self.count = bounds, [0] * len(bounds), 0.0, 0

    def add(self, value: float) -> None:
        self.sum += value
        self.count += 1
        for i, bound in enumerate(self.bounds):
            if value <= bound:
                self.counts[i] += 1

    def lines(self, name: str, labels: str = "") -> list[str]:
        comma = f"{labels}," if labels else ""
        tail = f"{{{labels}}}" if labels else ""
        rows = [f'{name}_bucket{{{comma}le="{b}"}} {n}' for b, n in zip(self.bounds, self.counts)]
        rows.append(f'{name}_bucket{{{comma}le="+Inf"}} {self.count}')
        return [*rows, f"{name}_sum{tail} {self.sum:.6f}", f"{name}_count{tail} {self.count}"]


class Metrics:
    """Everything that GET /metrics says. Labels come from fixed lists, so that strangers cannot make it grow."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.errors: Counter[str] = Counter()
        self.seconds = {name: Histogram(SECONDS) for name in (*ENDPOINTS, "other")}
        self.batches = Histogram(ROWS)
        self.rows = Counter({"answered": 0, "refused": 0})
        self.failures = 0  # times that the engine itself failed
        self.dropped = 0  # requests whose client had gone

    def answered(self, path: str, status: int, seconds: float) -> None:
        name = path if path in self.seconds else "other"
        self.requests[name, status] += 1
        self.seconds[name].add(seconds)

    def text(self, inside: int, waiting: int, ready: bool) -> str:
        lines = ["# TYPE luban_requests_total counter"]
        lines += [f'luban_requests_total{{path="{p}",status="{s}"}} {n}' for (p, s), n in sorted(self.requests.items())]
        lines.append("# TYPE luban_errors_total counter")
        lines += [f'luban_errors_total{{id="{i}"}} {n}' for i, n in sorted(self.errors.items())]
        lines.append("# TYPE luban_request_seconds histogram")
        for name, histogram in self.seconds.items():
            if histogram.count:
                lines += histogram.lines("luban_request_seconds", f'path="{name}"')
        lines += ["# TYPE luban_batch_rows histogram", *self.batches.lines("luban_batch_rows")]
        lines.append("# TYPE luban_rows_total counter")
        lines += [f'luban_rows_total{{result="{k}"}} {n}' for k, n in self.rows.items()]
        for name, kind, value in (
            ("luban_engine_failures_total", "counter", self.failures),
            ("luban_dropped_total", "counter", self.dropped),
            ("luban_requests_inside", "gauge", inside),
            ("luban_requests_waiting", "gauge", waiting),
            ("luban_ready", "gauge", int(ready)),
        ):
            lines += [f"# TYPE {name} {kind}", f"{name} {value}"]
        return "\n".join(lines) + "\n"
