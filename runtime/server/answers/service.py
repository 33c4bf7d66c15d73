"""The models of a server, by name, and what all requests are held to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from ..web.endless import Endless
from ..web.errors import ApiError
from .meters import Meters
from .served import ServedModel


@dataclass(frozen=True, slots=True)
class Service:
    """What endpoints work with."""

    models: tuple[ServedModel, ...]
    meters: Meters
    most_body: int
    """Bytes of a request."""
    endless: Endless = field(default_factory=Endless)
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The settings in force, for people who look on."""

    def find(self, name: str | None) -> ServedModel:
        """The model that a request names, or the only one. Raises ApiError."""
        known = [served.name for served in self.models]
        for served in self.models:
            if name in (served.name, f"{served.name}:latest") or (name is None and len(known) == 1):
                return served
        what = "no model is named in the request" if name is None else f"there is no model {name!r} here"
        raise ApiError(404, f"{what}; there are: {', '.join(known)}", code="model_not_found", param="model")


def service_of(request: Request) -> Service:
    """The service that ``request`` came to."""
    found: Service = request.app.state.service
    return found


def client_of(request: Request) -> str:
    """Who is asking, for a fair queue."""
    return request.client.host if request.client else ""
