"""What Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

if TYPE_CHECKING:
    from .replies import Answer
    from .service import Service

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_PASSES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TPF = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)


class Metrics:
    """The counters of one server; policies are counted by name, without parameters.

    Args:
        engine: the process of the engine; None: this one.
    """

    def __init__(self, engine: int | None = None) -> None:
        own = self.registry = CollectorRegistry()
        ProcessCollector(registry=own)
        if engine is not None:
            ProcessCollector("unmask_engine", lambda: engine, registry=own)
        self.http = Counter("unmask_http_requests", "HTTP requests", ["path", "status"], registry=own)
        self.rejected = Counter("unmask_rejected", "Requests refused because the queue was full", registry=own)
        self.responses = Counter(
            "unmask_responses", "Responses that have ended", ["policy", "finish_reason"], registry=own
        )
        self.tokens = Counter("unmask_tokens", "Tokens", ["policy", "kind"], registry=own)
        self.passes = Counter("unmask_forward_passes", "Forward passes of the engine", registry=own)
        self.rows = Histogram("unmask_rows", "Responses that share a forward pass", buckets=_PASSES, registry=own)
        self.nfe = Histogram("unmask_nfe", "Forward passes of a response", ["policy"], buckets=_PASSES, registry=own)
        self.tpf = Histogram("unmask_tpf", "Tokens per forward pass", ["policy"], buckets=_TPF, registry=own)
        self.first = Histogram(
            "unmask_first_token_seconds",
            "Seconds from a request's arrival to its first token that can no longer change",
            ["policy"],
            buckets=_SECONDS,
            registry=own,
        )
        self.seconds = Histogram(
            "unmask_response_seconds", "Seconds from a request's arrival to its end", ["policy"], buckets=_SECONDS,
            registry=own,
        )  # fmt: skip

    def watch(self, service: Service) -> None:
        """Read what is going on when somebody asks."""
        worker = service.worker
        read: Callable[[], float]
        for name, what, read in (
            ("unmask_open", "Responses that wait or are being decoded", lambda: service.open),
            ("unmask_running", "Responses that are being decoded", lambda: worker.load.running),
            ("unmask_waiting", "Responses that wait for a place", lambda: worker.load.waiting),
            (
                "unmask_state_bytes",
                "Bytes of these; 0 without a budget",
                lambda: worker.load.used,
            ),
            ("unmask_memory_budget_bytes", "Most bytes; 0: no limit", lambda: service.settings.budget or 0),
        ):
            Gauge(name, what, registry=self.registry).set_function(read)

    def passed(self, rows: int) -> None:
        """Count a forward pass."""
        self.passes.inc()
        self.rows.observe(rows)

    def ended(self, answer: Answer) -> None:
        """Count a response."""
        result, name = answer.result, answer.ticket.request.policy.name
        self.responses.labels(name, answer.reason).inc()
        self.tokens.labels(name, "prompt").inc(len(result.prompt_tokens))
        self.tokens.labels(name, "completion").inc(result.stats.tokens)
        self.nfe.labels(name).observe(result.stats.nfe)
        self.tpf.labels(name).observe(result.stats.tpf)
        self.seconds.labels(name).observe(answer.ticket.seconds)
        if answer.ticket.first is not None:
            self.first.labels(name).observe(answer.ticket.first)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
