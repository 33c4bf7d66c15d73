"""Servers that tests share, and their clients."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest

from tests.support.chat_models import RESPONSES, byte_tokenizer, save_chat_model
from tests.support.servers import Served, serving


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a chat template."""
    return save_chat_model(tmp_path_factory.mktemp("chat") / "llama")


@pytest.fixture(scope="session")
def server(chat_folder: Path, store: Path) -> Iterator[Served]:
    """A server whose tokenizer has no response template: all text is content."""
    with serving(chat_folder, store, byte_tokenizer()) as server:
        yield server


@pytest.fixture(scope="session")
def calling_server(chat_folder: Path, store: Path) -> Iterator[Served]:
    """A server whose tokenizer tells reasoning and tool calls apart."""
    with serving(chat_folder, store, byte_tokenizer(responses=RESPONSES)) as server:
        yield server


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    """OpenAI's own client, which asks once."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0, timeout=60) as client:
        yield client
        server.idle()


@pytest.fixture
def raw(server: Served) -> Iterator[httpx2.Client]:
    """A client that sends what it is given."""
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        yield client
        server.idle()
