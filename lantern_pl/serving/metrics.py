"""Figures for Prometheus. One process answers all requests, so that they are whole in its memory."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """All figures of the service, each with the name of its variant where an experiment is read by it."""

    def __init__(self, variant: str) -> None:
        self._variant = variant
        self.registry = CollectorRegistry()
        disable_created_metrics()  # times that nobody asks for, one for each series

        def make(kind: Any, name: str, about: str, labels: tuple[str, ...] = (), **more: Any) -> Any:
            return kind(f"lantern_{name}", about, labels, registry=self.registry, **more)

        self._requests = make(
            Counter,
            "requests",
            "Answers, by their status and the type of the error.",
            ("route", "status", "error", "variant"),
        )
        self._seconds = make(
            Histogram,
            "request_seconds",
            "From a request's head to its answer's end.",
            ("route", "variant"),
            buckets=_SECONDS,
        )
        self._first = make(
            Histogram, "first_sentence_seconds", "Until the first sentence left.", ("variant",), buckets=_SECONDS
        )
        self._batch = make(
            Histogram, "batch_size", "Pairs that were computed with each pair.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256)
        )
        self._levels = make(Counter, "levels", "Pairs by the level that was answered.", ("route", "level", "variant"))
        self._score = make(
            Histogram, "fit_score", "Scores of /fit.", ("variant",), buckets=tuple(tenth / 10 for tenth in range(1, 11))
        )
        self._flagged = make(Counter, "flagged_pairs", "Pairs with a flag.", ("route", "variant"))
        self._tokens = make(Counter, "generated_tokens", "Tokens that the decoder wrote.", ("variant",))
        self._quotes = make(Counter, "quotes", "Quotes in explanations, by whether they were found.", ("found", "variant"))
        self._failed = make(
            Counter,
            "failed_checks",
            "Explanations that failed a check: format, complete, evidence, level.",
            ("check", "variant"),
        )
        self.waiting = make(Gauge, "waiting_pairs", "Pairs that wait for an answer.", ("route",))

    def request(self, route: str, status: int, error: str, seconds: float) -> None:
        self._requests.labels(route, status, error, self._variant).inc()
        self._seconds.labels(route, self._variant).observe(seconds)

    def fit(self, level: str, score: float, batch: int, flagged: bool) -> None:
        self._levels.labels("/fit", level, self._variant).inc()
        self._score.labels(self._variant).observe(score)
        self._batch.observe(batch)
        self._flagged.labels("/fit", self._variant).inc(flagged)

    def first_sentence(self, seconds: float) -> None:
        self._first.labels(self._variant).observe(seconds)

    def explained(self, level: str | None, tokens: int, quotes: int, found: int, failed: list[str], flagged: bool) -> None:
        self._levels.labels("/explain", level or "none", self._variant).inc()
        self._tokens.labels(self._variant).inc(tokens)
        self._quotes.labels("yes", self._variant).inc(found)
        self._quotes.labels("no", self._variant).inc(quotes - found)
        self._flagged.labels("/explain", self._variant).inc(flagged)
        for check in failed:
            self._failed.labels(check, self._variant).inc()

    def page(self) -> bytes:
        return generate_latest(self.registry)
