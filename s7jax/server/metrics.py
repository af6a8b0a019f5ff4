"""What /metrics shows: counts and times, nothing of any text."""

import prometheus_client as prometheus

from s7jax.server.worker import Worker

CONTENT_TYPE = prometheus.CONTENT_TYPE_LATEST


class Metrics:
    """A registry of its own."""

    def __init__(self, worker: Worker) -> None:
        self._registry = own = prometheus.CollectorRegistry()
        self._answers = prometheus.Counter("s7_answers", "Answers by end.", ["end"], registry=own)
        self._tokens = prometheus.Counter("s7_tokens", "Tokens generated.", registry=own)
        self._seconds = prometheus.Histogram(
            "s7_answer_seconds", "From arrival to the end.", registry=own
        )
        self._first = prometheus.Histogram(
            "s7_first_token_seconds", "From arrival to the first token.", registry=own
        )
        gauge = prometheus.Gauge("s7_open_answers", "Answers not ended yet.", registry=own)
        gauge.set_function(lambda: worker.open)

    def first(self, seconds: float) -> None:
        """A first token has come."""
        self._first.observe(seconds)

    def ended(self, end: str, tokens: int, seconds: float) -> None:
        """An answer has ended."""
        self._answers.labels(end).inc()
        self._tokens.inc(tokens)
        self._seconds.observe(seconds)

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return prometheus.generate_latest(self._registry)
