"""What the server counts, for prometheus."""

from prometheus_client import CollectorRegistry, Counter, Histogram

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Meters:
    """The counters of a server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter("penstock_requests", "Requests that were accepted.", ["model"], registry=registry)
        self._ended = Counter(
            "penstock_answers", "Answers that ended, by reason.", ["model", "ending"], registry=registry
        )
        self._prompt = Counter("penstock_prompt_tokens", "Tokens of prompts.", ["model"], registry=registry)
        self._tokens = Counter("penstock_answer_tokens", "Tokens of answers.", ["model"], registry=registry)
        self._first = Histogram(
            "penstock_first_token_seconds",
            "Time until the first token, with waiting.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )

    def of(self, model: str) -> "ModelMeters":
        """Those of one model."""
        return ModelMeters(self, model)

    def note_request(self, model: str, prompt_tokens: int) -> None:
        self._requests.labels(model).inc()
        self._prompt.labels(model).inc(prompt_tokens)

    def note_token(self, model: str, first: float | None) -> None:
        self._tokens.labels(model).inc()
        if first is not None:
            self._first.labels(model).observe(first)

    def note_ending(self, model: str, ending: str) -> None:
        self._ended.labels(model, ending).inc()


class ModelMeters:
    """The counters of one model."""

    def __init__(self, meters: Meters, model: str) -> None:
        self._meters, self._model = meters, model

    def began(self, prompt_tokens: int) -> None:
        """A request was accepted."""
        self._meters.note_request(self._model, prompt_tokens)

    def token(self, first: float | None) -> None:
        """A token has come; ``first``: the seconds until then, if it is the first one."""
        self._meters.note_token(self._model, first)

    def ended(self, ending: str) -> None:
        """An answer has ended."""
        self._meters.note_ending(self._model, ending)
