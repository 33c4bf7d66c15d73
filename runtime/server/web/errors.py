"""Errors as clients see them: a status, a message, and what programs tell them apart by."""

from dataclasses import dataclass
from math import ceil

from ....tiering.errors import Closed, PenstockError, PromptTooLong, QueueFull, RequestError, TimedOut


@dataclass
class ApiError(Exception):
    """An answer with an error. ``kind`` and ``code`` are words of OpenAI's, ``param`` is the field that is wrong."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    retry_after: int | None = None
    """Seconds."""


def api_error(error: BaseException) -> ApiError:
    """Return what clients are told of ``error``."""
    message = str(error)
    match error:
        case ApiError():
            return error
        case PromptTooLong():
            return ApiError(400, message, code="context_length_exceeded", param="messages")
        case RequestError():
            return ApiError(400, message)
        case QueueFull():
            return ApiError(429, message, "rate_limit_error", "queue_full", retry_after=ceil(error.retry_after))
        case TimedOut():
            return ApiError(504, message, "timeout_error", "timeout")
        case Closed():
            return ApiError(503, message, "server_error", "closed", retry_after=5)
        case PenstockError():
            return ApiError(500, message, "server_error", type(error).__name__)
    return ApiError(500, "the server failed; its log says why", "server_error", "internal_error")
