"""What Prometheus reads of a server; nothing in it is about a user."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from polyrec.serving.shadow import Compared

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SHARES = tuple(n / 10 for n in range(11))
_DIFFERENCES = (-3.0, -1.0, -0.3, -0.1, -0.03, -0.01, -0.001, 0.0, 0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


class Metrics:
    """Counters of one server.

    Args:
        service: whose state is read when somebody calls.
    """

    def __init__(self, service: Any) -> None:
        self.registry = CollectorRegistry()
        names = ["route", "status"]
        self.requests = Counter("polyrec_requests", "requests", names, registry=self.registry)
        self.seconds = Histogram(
            "polyrec_request_seconds", "time of a request", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self.batch = Histogram(
            "polyrec_batch_size", "requests of a batch", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.registry
        )
        self.batch_seconds = Histogram(
            "polyrec_batch_seconds", "time of a batch", buckets=_SECONDS, registry=self.registry
        )
        self.responses = Counter("polyrec_responses", "responses of the models", ["variant"], registry=self.registry)
        self.model_seconds = Histogram(
            "polyrec_model_seconds",
            "time of a variant's part of a batch",
            ["variant"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.shadowed = Counter(
            "polyrec_shadow_requests", "requests that the shadow repeated", ["result"], registry=self.registry
        )
        self.overlap = Histogram(
            "polyrec_shadow_overlap",
            "share of a list that the shadow has, too",
            buckets=_SHARES,
            registry=self.registry,
        )
        self.difference = Histogram(
            "polyrec_shadow_score_difference",
            "mean score of the shadow less that served, of items in both lists",
            buckets=_DIFFERENCES,
            registry=self.registry,
        )
        self.registry.register(_State(lambda: service))

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request has its response."""
        self.requests.labels(route or "unknown", str(status)).inc()
        self.seconds.labels(route or "unknown").observe(seconds)

    def batched(self, size: int, seconds: float) -> None:
        """A batch is done."""
        self.batch.observe(size)
        self.batch_seconds.observe(seconds)

    def responded(self, variant: str, size: int, seconds: float) -> None:
        """A variant has done its part of a batch."""
        self.responses.labels(variant).inc(size)
        self.model_seconds.labels(variant).observe(seconds)

    def compared(self, found: Compared | None) -> None:
        """The shadow has repeated a request; None: it failed."""
        self.shadowed.labels("failed" if found is None else "compared").inc()
        if found is not None:
            self.overlap.observe(found.overlap)
            if found.difference is not None:
                self.difference.observe(found.difference)

    def text(self) -> bytes:
        """All of it, in Prometheus' format."""
        return generate_latest(self.registry)


class _State(Collector):
    """Reads the state when it is asked for."""

    def __init__(self, service: Callable[[], Any]) -> None:
        self._service = service

    def collect(self) -> Iterator[Any]:
        """Gauges and counters of the state."""
        service = self._service()
        yield GaugeMetricFamily("polyrec_ready", "1: it serves", value=float(service.ready))
        if not service.ready:
            return
        figures = service.state.figures
        events = CounterMetricFamily("polyrec_events", "events by what became of them", labels=["how"])
        for how in ("counted", "late", "skipped", "known"):
            events.add_metric([how], getattr(figures, how))
        yield events
        gauges = {
            "polyrec_pending_events": ("events that were not counted yet", len(service.pending)),
            "polyrec_unwritten_records": ("records that wait for the disk", service.writer.waiting),
            "polyrec_waiting_requests": ("requests that wait for the model", len(service.batcher)),
            "polyrec_stored_sequence": ("latest record", service.writer.known),
            "polyrec_state_sequence": ("latest record of the state", service.state.seq),
        }
        for name, (what, value) in gauges.items():
            yield GaugeMetricFamily(name, what, value=float(value))
        sequence = GaugeMetricFamily(
            "polyrec_variant_sequence", "latest record of a variant's state", labels=["variant"]
        )
        for name, variant in service.variants.items():
            sequence.add_metric([name], float(variant.state.seq))
        yield sequence
