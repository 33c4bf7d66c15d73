"""Works off a file of requests: as many at a time as there are rows, and as many more in the queue."""

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from ..serving.engine import Engine
from .answers_file import AnswersFile, opened
from .calling import call
from .lines import Line, order_lines, read_body, read_lines

_FAULT = 500
"""From this status on it was not the request that was wrong."""


@dataclass(slots=True)
class Report:
    """What a run has done. Tokens of prompts that were ``shared`` were computed for another one, or stored before."""

    requests: int = 0
    answered: int = 0
    refused: int = 0
    failed: int = 0
    found_answered: int = 0
    prompt_tokens: int = 0
    shared_tokens: int = 0
    answer_tokens: int = 0
    seconds: float = 0.0
    flash_bytes_read: int = 0

    def figures(self) -> dict[str, float | int | None]:
        """All, with rates."""
        rate = self.answer_tokens / self.seconds if self.seconds else None
        read = self.flash_bytes_read / self.answer_tokens if self.answer_tokens else None
        share = self.shared_tokens / self.prompt_tokens if self.prompt_tokens else None
        return {**asdict(self), "tokens_per_second": rate, "flash_bytes_per_token": read, "shared_share": share}

    def count(self, status: int, usage: Any) -> None:
        """Count an answer."""
        self.answered += status == 200
        self.refused += 200 < status < _FAULT
        self.failed += status >= _FAULT
        usage = usage if isinstance(usage, dict) else {}
        prompt = "prompt_tokens" if "prompt_tokens" in usage else "input_tokens"
        answer = "completion_tokens" if "completion_tokens" in usage else "output_tokens"
        details = usage.get(f"{prompt}_details") or {}
        self.prompt_tokens += usage.get(prompt, 0)
        self.shared_tokens += details.get("cached_tokens", 0)
        self.answer_tokens += usage.get(answer, 0)


async def run_batch(
    source: Path, out: Path, app: ASGIApp, engine: Engine, *, window: int, told: Callable[[int, int, int], None]
) -> Report:
    """Answer the requests in the file ``source`` by ``app``, over ``engine``, ``window`` at a time, into the file
    ``out``, which may have some. ``told`` is called with the answers that there are, all requests, and the tokens of
    answers so far. Raises BatchError, and what ends the engine."""
    lines = await read_lines(source)
    report, began = Report(requests=len(lines)), time.perf_counter()
    async with opened(out, {line.custom_id for line in lines}) as answers:
        report.found_answered = len(answers.done)
        left = iter(order_lines([line for line in lines if line.custom_id not in answers.done]))
        work = _Work(source, app, engine, answers, report, told)
        told(report.found_answered, len(lines), 0)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(window):
                    group.create_task(work.go_through(left))
        except* Exception as several:
            raise several.exceptions[0] from None
    report.seconds = time.perf_counter() - began
    return report


class _Work:
    def __init__(
        self,
        source: Path,
        app: ASGIApp,
        engine: Engine,
        answers: AnswersFile,
        report: Report,
        told: Callable[[int, int, int], None],
    ) -> None:
        self._source, self._app, self._engine = source, app, engine
        self._answers, self._report, self._told = answers, report, told

    async def go_through(self, lines: Iterator[Line]) -> None:
        """Answer ``lines``, one after the other."""
        for line in lines:
            status, raw = await call(self._app, line.url, await read_body(self._source, line))
            if (ended := self._engine.ended) is not None:
                raise ended
            body = json.loads(raw)
            self._report.count(status, body.get("usage"))
            if status < _FAULT:  # what the machine failed at is tried again by the next run
                await self._answers.add(_answer(line, status, body))
            done = self._report.found_answered + self._report.answered + self._report.refused + self._report.failed
            self._told(done, self._report.requests, self._report.answer_tokens)


def _answer(line: Line, status: int, body: Any) -> dict[str, Any]:
    """A line of OpenAI's batch output."""
    number = secrets.token_hex(12)
    response = {"status_code": status, "request_id": body.get("id") or f"req_{number}", "body": body}
    return {"id": f"batch_req_{number}", "custom_id": line.custom_id, "response": response, "error": None}
