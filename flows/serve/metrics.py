"""Figures of the server in Prometheus' text format."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one server.

    Args:
        active: Answers that are being written.
        waiting: Requests that wait.
    """

    def __init__(self, active: Callable[[], int], waiting: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self.requests = Counter(
            "phivision_requests",
            "Chat completions, and refused requests, by status.",
            ["status"],
            registry=registry,
        )
        self.tokens = Counter("phivision_tokens", "Tokens written.", registry=registry)
        self.first_token = Histogram(
            "phivision_first_token_seconds",
            "Seconds from a request to its first token.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.whole = Histogram(
            "phivision_answer_seconds",
            "Seconds from a request to its whole answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        for name, about, value in (
            ("phivision_active", "Answers that are being written.", active),
            ("phivision_waiting", "Requests that wait to be written.", waiting),
        ):
            Gauge(name, about, registry=registry).set_function(value)

    def text(self) -> bytes:
        """Return all figures."""
        return generate_latest(self._registry)
