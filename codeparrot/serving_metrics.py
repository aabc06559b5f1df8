"""What Prometheus can ask of a server: requests, tokens, how long the first one took, what waits.

Figures of one process; of several replicas, Ray's own port has those of each (`ray_jobs.telemetry`).
"""

from collections.abc import Iterator, Mapping

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # which nobody reads

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
FAST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SLOW_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class ServingMetrics:
    """The figures of one server, in a registry of their own."""

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        self.requests = Counter("codeparrot_requests", "Completion requests answered", ["status"], registry=own)
        self.left = Counter("codeparrot_requests_left", "Requests whose client left before the end", registry=own)
        self.prompt_tokens = Counter("codeparrot_prompt_tokens", "Tokens of prompts that were accepted", registry=own)
        self.tokens = Counter("codeparrot_completion_tokens", "Tokens generated", registry=own)
        self.running = Gauge("codeparrot_completions_running", "Completions in the batch", registry=own)
        self.queued = Gauge("codeparrot_completions_queued", "Completions that wait for room in it", registry=own)
        self.first_token = Histogram(
            "codeparrot_time_to_first_token_seconds",
            "From the request to its first token",
            registry=own,
            buckets=FAST_BUCKETS,
        )
        self.duration = Histogram(
            "codeparrot_request_seconds", "From the request to its last token", registry=own, buckets=SLOW_BUCKETS
        )

    def samples(self) -> Iterator[tuple[str, Mapping[str, str], float]]:
        """(name, labels, value) of each."""
        for metric in self._registry.collect():
            for sample in metric.samples:
                yield sample.name, sample.labels, sample.value

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return prometheus_client.generate_latest(self._registry)
