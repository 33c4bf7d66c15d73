"""The paths of OpenAI's interface."""

from collections.abc import Sequence

from starlette.routing import Route

from ..web.endpoints import Endpoint, guard
from .chat import chat
from .completions import complete
from .models import list_models, show_model
from .responses import respond
from .shared import error_body

_PATHS: Sequence[tuple[str, str, Endpoint]] = (
    ("GET", "/v1/models", list_models),
    ("GET", "/v1/models/{name:path}", show_model),
    ("POST", "/v1/chat/completions", chat),
    ("POST", "/v1/completions", complete),
    ("POST", "/v1/responses", respond),
)

routes = [Route(path, guard(endpoint, error_body), methods=[method]) for method, path, endpoint in _PATHS]
