"""``/dashboard/events``: what the models do, every second, to all who look on."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack, closing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..answers.service import Service
from ..openai.shared import failed_event
from ..web.replies import EventReply, event
from .sampler import Watch

PERIOD = 1.0
"""Seconds between two looks."""


class Feed:
    """Looks at the models as long as somebody looks on, once for all who do."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._viewers = 0
        self._next: asyncio.Future[str] | None = None
        self._task: asyncio.Task[None] | None = None

    async def events(self) -> AsyncGenerator[str, None]:
        """The settings, then what is, every second."""
        self._viewers += 1
        try:
            with self._service.endless.stream():
                yield event({"settings": dict(self._service.settings)}, "settings")
                while not self._service.endless.stopped:
                    yield await asyncio.shield(self._following())
        finally:
            self._viewers -= 1
            if not self._viewers and self._task is not None:
                self._task.cancel()

    def _following(self) -> "asyncio.Future[str]":
        """What will be seen at the next look."""
        if self._next is None or self._task is None or self._task.done():
            self._next = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._run())
        return self._next

    async def _run(self) -> None:
        try:
            with ExitStack() as watching:
                watches = {
                    served.name: watching.enter_context(closing(Watch(served))) for served in self._service.models
                }
                while True:
                    self._tell(await asyncio.to_thread(_sample, watches))
                    await asyncio.sleep(PERIOD)
        except Exception as error:
            if self._next is not None and not self._next.done():
                self._next.set_exception(error)

    def _tell(self, said: str) -> None:
        told, self._next = self._next, asyncio.get_running_loop().create_future()
        if told is not None and not told.done():
            told.set_result(said)


def _sample(watches: dict[str, Watch]) -> str:
    models: list[dict[str, Any]] = [{"name": name, **watch.sample()} for name, watch in watches.items()]
    return event({"models": models}, "state")


async def look_on(request: Request) -> Response:
    """What the models do, as events."""
    feed: Feed = request.app.state.feed
    return EventReply(feed.events(), failed_event, _nothing, ping=": ping\n\n", media_type="text/event-stream")


def _nothing() -> None:
    """The stream ends what it began."""
