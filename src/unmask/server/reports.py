"""Metrics of replicas: each reports its own beside its replies, and the front shows them with the replica's name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families as parsed

KIND = "unmask.metrics"  # of the messages that carry them
EVERY = 1.0  # seconds between two reports of a replica that has requests
SILENT = 30.0  # seconds after which one that has not told of its end is taken for lost
_MOST = 256  # replicas that are remembered
_FRONT = ("unmask_http_requests", "unmask_open")  # counted at the front; replicas would count them a second time
_NOW = ("unmask_running", "unmask_waiting", "unmask_state_bytes", "unmask_memory_budget_bytes", "process_")


class Reports:
    """The last report of each replica.

    Args:
        own: the front's registry.
        clock: seconds.
    """

    def __init__(self, own: CollectorRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        self.own, self.clock = own, clock
        self._last: dict[str, tuple[float, str, bool]] = {}

    def take(self, report: dict[str, Any]) -> None:
        """Note what a replica says; ``busy``: it has requests, and will say more."""
        name = report["replica"]
        self._last.pop(name, None)
        self._last[name] = (self.clock(), report["text"], report["busy"])
        while len(self._last) > _MOST:
            del self._last[next(iter(self._last))]

    def text(self) -> bytes:
        """The front's metrics and those of the replicas, in Prometheus' text format.

        What replicas have counted stays when they are gone; what they are doing does not.
        """
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        """The families, each once."""
        found = {family.name: family for family in self.own.collect()}
        reported: set[str] = set()
        for name, (when, text, busy) in self._last.items():
            lost = busy and self.clock() - when > SILENT
            for family in parsed(text):
                if family.name in _FRONT or (lost and family.name.startswith(_NOW)):
                    continue
                into = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                if family.name not in reported and not family.name.startswith(("process_", "unmask_rejected")):
                    into.samples = []  # the front decodes nothing
                reported.add(family.name)
                for sample in family.samples:
                    into.add_sample(sample.name, {**sample.labels, "replica": name}, sample.value)
        yield from found.values()
