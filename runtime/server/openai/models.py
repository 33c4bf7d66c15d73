"""``/v1/models``."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..answers.served import ServedModel
from ..answers.service import service_of


async def list_models(request: Request) -> Response:
    """The models of this server."""
    return JSONResponse({"object": "list", "data": [_model(served) for served in service_of(request).models]})


async def show_model(request: Request) -> Response:
    """One of them."""
    return JSONResponse(_model(service_of(request).find(request.path_params["name"])))


def _model(served: ServedModel) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "penstock",
        "max_model_len": served.positions,
    }
