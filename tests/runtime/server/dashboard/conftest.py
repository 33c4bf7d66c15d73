"""Browsers, and the servers that they look at."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.browsers import run_browser
from tests.support.chat_models import byte_tokenizer, save_chat_model
from tests.support.servers import Served, serving

Open = Callable[..., Any]

KEY = "a secret key"
SETTINGS = {"serve": {"batch": "exact", "rows": 8}}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page hears of what is more often than people want to."""
    monkeypatch.setattr("penstock.runtime.server.dashboard.feed.PERIOD", 0.1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from run_browser()


@pytest.fixture(scope="module")
def experts_server(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[Served]:
    """A server of a tiny mixture of experts, with a key."""
    folder = save_chat_model(tmp_path_factory.mktemp("experts") / "moe", "qwen3_moe")
    with serving(folder, store, byte_tokenizer(), key=KEY, settings=SETTINGS) as server:
        yield server


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    """Opens the page of a server in a context of its own. What goes wrong in the page fails the test."""
    contexts, wrong = [], []

    def opened(server: Served, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.addresses = []
        page.on("request", lambda request: page.addresses.append(request.url))
        page.goto(server.url)
        return page

    yield opened
    for context in contexts:
        context.close()
    # The browser's log has requests that were refused, too.
    assert [each for each in wrong if "responded with a status of 40" not in each] == []
