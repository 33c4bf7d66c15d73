"""The paths of OpenAI's interface."""

from ..web.endpoints import Path, routes_of
from .chat import chat
from .completions import complete
from .embeddings import EmbeddingRequest, embed
from .models import list_models, show_model
from .requests import ChatRequest, CompletionRequest
from .response_requests import ResponsesRequest
from .responses import respond
from .shared import error_body

paths = (
    Path("GET", "/v1/models", list_models),
    Path("GET", "/v1/models/{name:path}", show_model),
    Path("POST", "/v1/chat/completions", chat, ChatRequest),
    Path("POST", "/v1/completions", complete, CompletionRequest),
    Path("POST", "/v1/embeddings", embed, EmbeddingRequest),
    Path("POST", "/v1/responses", respond, ResponsesRequest),
)

routes = routes_of(paths, error_body)
