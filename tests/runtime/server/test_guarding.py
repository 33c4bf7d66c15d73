"""Who may ask."""

from collections.abc import Iterator

import httpx2
import pytest
from starlette.responses import PlainTextResponse

from penstock.runtime.server.guarding import Guarded


@pytest.fixture
def ask() -> Iterator[object]:
    """Ask an application that has a key."""
    app = Guarded(PlainTextResponse("here"), "the key", loopback=True, open_paths={"/health"})

    async def ask(path: str = "/v1/models", **headers: str) -> tuple[int, str]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost:8000") as client:
            found = await client.get(path, headers=named)
        return found.status_code, found.text

    return ask


async def test_the_key_is_asked_for(ask):
    assert (await ask())[0] == 401
    assert (await ask(authorization="Bearer another"))[0] == 401
    assert (await ask(authorization="Basic the key"))[0] == 401
    assert await ask(authorization="Bearer the key") == (200, "here")
    assert await ask(x_api_key="the key") == (200, "here")
    assert (await ask("/health"))[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:1"}, 200),
        ({"host": "127.0.0.1"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "attacker.example"}, 403),
        ({"host": "[::1"}, 403),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, 200),
        ({"host": "localhost:8000", "origin": "https://attacker.example"}, 403),
        ({"host": "localhost:8000", "origin": "null"}, 403),
    ],
)
async def test_pages_of_others_are_refused(ask, headers, status):
    assert (await ask(x_api_key="the key", **headers))[0] == status


async def test_other_hosts_are_for_servers_that_others_reach():
    app = Guarded(PlainTextResponse("here"), None, loopback=False)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://my.server") as client:
        assert (await client.get("/")).text == "here"
