"""How the server is: ``/health``, ``/metrics``, ``/props``."""

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .answers.served import ServedModel
from .answers.service import service_of
from .openai.shared import error_body
from .web.endpoints import Path, routes_of


async def health(request: Request) -> Response:
    """Whether it answers."""
    ended = {served.name: str(error) for served in service_of(request).models if (error := served.engine.ended)}
    return JSONResponse({"status": "ended", "models": ended}, 503) if ended else JSONResponse({"status": "ok"})


async def metrics(request: Request) -> Response:
    """Counters and gauges, for prometheus."""
    return Response(generate_latest(service_of(request).meters.registry), media_type=CONTENT_TYPE_LATEST)


async def props(request: Request) -> Response:
    """What is known of the models."""
    return JSONResponse({"models": [_props(served) for served in service_of(request).models]})


paths = (
    Path("GET", "/health", health),
    Path("GET", "/metrics", metrics),
    Path("GET", "/props", props),
)
routes = routes_of(paths, error_body)
OPEN_PATHS = frozenset({"/health"})
"""What needs no key."""


class ModelGauges(Collector):
    """What a model has now, looked up when prometheus asks."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._models = tuple(models)

    def collect(self) -> Iterator[Metric]:
        """The gauges."""
        requests = GaugeMetricFamily("penstock_requests_now", "Requests, by state.", labels=["model", "state"])
        memory = GaugeMetricFamily("penstock_memory_bytes", "Memory in use, by tier.", labels=["model", "tier"])
        read = GaugeMetricFamily("penstock_flash_read_bytes", "Bytes of weights read from flash.", labels=["model"])
        hits = GaugeMetricFamily("penstock_hit_ratio", "Weights found in memory.", labels=["model"])
        for served in self._models:
            for state, count in served.engine.counts().items():
                requests.add_metric([served.name, state], count)
            if (model := served.model) is None:
                continue
            report = model.penstock.stats().report()
            for tier in ("host", "device"):
                memory.add_metric([served.name, tier], report[f"{tier}_bytes"])
            read.add_metric([served.name], report["flash_bytes_read"])
            hits.add_metric([served.name], report["hit_ratio"])
        yield from (requests, memory, read, hits)


def _props(served: ServedModel) -> dict[str, Any]:
    return {
        "name": served.name,
        "context_tokens": served.positions,
        "vocabulary": served.vocabulary,
        "chat_template": served.chat.exists,
        "tool_calls": served.response_template is not None,
        "requests": served.engine.counts(),
    }
