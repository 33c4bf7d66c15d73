"""``penstock serve``: the interfaces of OpenAI, Anthropic and Ollama over one model or several."""

import importlib.util
import ipaddress
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ...tiering.errors import ServerError
from ..loading.opening import ModelSource
from ..loading.progress import shown
from .console import importing, print_json, say
from .options import Settings, SeveralSources

if TYPE_CHECKING:
    import socket

    from ..config.config import Config
    from ..server.opening import Serving

PORT = 8000
_NEEDED = ("starlette", "uvicorn", "prometheus_client", "llguidance")


def command(
    sources: SeveralSources,
    settings: Settings,
    host: Annotated[str, typer.Option(metavar="NAME", help="Address to listen on; this machine only by default.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Port; 0 is any that is free.")] = PORT,
    name: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Name in requests; with several models once for each.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", envvar="PENSTOCK_API_KEY", help="What clients have to send; other users see options."
        ),
    ] = None,
    rows: Annotated[int, typer.Option(metavar="N", min=1, help="Requests that are answered at a time.")] = 32,
    queue: Annotated[int, typer.Option(metavar="N", min=0, help="Requests that may wait; more are refused.")] = 256,
    turn: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0, help="Of several models: how long a request for another one waits."),
    ] = 10.0,
    pooling: Annotated[
        Literal["auto", "mean", "last", "first"],
        typer.Option(help="Which hidden states embeddings are made of; auto: as the model's files say, else mean."),
    ] = "auto",
    batch: Annotated[
        Literal["exact", "fast", "auto"],
        typer.Option(
            help="exact: every answer has the bits that it has alone. fast: several rows may be summed otherwise. "
            "auto: exact as long as reading takes the time."
        ),
    ] = "exact",
) -> None:
    """Serve models to clients of OpenAI's, Anthropic's and Ollama's interfaces. Several take turns with the memory."""
    missing = [each.replace("_", "-") for each in _NEEDED if importlib.util.find_spec(each) is None]
    if missing:
        raise ServerError(f"serve needs {', '.join(missing)}; run: pip install 'penstock[serve]'")
    if api_key is not None and not api_key.strip():
        raise typer.BadParameter(
            "it is empty, so everybody would have it; leave it out or name one", param_hint="--api-key"
        )
    named = _name_all(sources.each(), name or [])
    config = settings.load()
    from ..server.running import listen

    with closing(listen(host, port)) as waiting:
        with importing():
            from ..server.opening import Serving

        serving = Serving(rows, queue, batch, pooling, turn)
        _serve(waiting, host, api_key, named, config, serving, json=settings.json)


def _serve(
    waiting: "socket.socket",
    host: str,
    key: str | None,
    named: Sequence[tuple[str, ModelSource]],
    config: "Config",
    serving: "Serving",
    *,
    json: bool,
) -> None:
    """Open the models and serve them on the socket ``waiting`` until the end. ``json``: say where as JSON."""
    with importing():
        from ..server.answers.meters import Meters
        from ..server.app import make_app
        from ..server.opening import open_models
        from ..server.running import run_server
        from ..server.web.endless import Endless

    meters, endless = Meters(), Endless()
    with ExitStack() as opened:
        with shown() as bar:
            models = opened.enter_context(open_models(named, config, serving, meters, bar))
        told = {"serve": asdict(serving), **config.model_dump(mode="json")}
        app = make_app(models, meters, key=key, loopback=_is_loopback(host), endless=endless, settings=told)
        address = f"http://{f'[{host}]' if ':' in host else host}:{waiting.getsockname()[1]}"
        names = [served.name for served in models]
        if json:
            print_json({"url": address, "model": names[0], "models": names})
        else:
            are = f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} served"
            say(f"penstock: {are} at {address}/v1; the page {address} shows what happens")
        run_server(app, waiting, say, endless)


def _name_all(sources: Sequence[ModelSource], names: Sequence[str]) -> list[tuple[str, ModelSource]]:
    """Models with their names in requests."""
    if names and len(names) != len(sources):
        raise typer.BadParameter(f"{len(names)} names for {len(sources)} models", param_hint="--name")
    if not all(name.strip() for name in names):
        raise typer.BadParameter("a name is empty", param_hint="--name")
    found = list(names) or [_name_of(source.model) for source in sources]
    double = next((name for name in found if found.count(name) > 1), None)
    if double is not None:
        raise typer.BadParameter(f"two models are called {double!r}; name each", param_hint="--name")
    return list(zip(found, sources, strict=True))


def _name_of(model: str) -> str:
    """The name of a model in requests: a hub id as it is, else that of its folder or file."""
    path = Path(model).expanduser()
    return (path.resolve().stem if path.is_file() else path.resolve().name) if path.exists() else model


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
