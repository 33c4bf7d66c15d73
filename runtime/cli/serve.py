"""``penstock serve``: the interfaces of OpenAI, Anthropic and Ollama over one model."""

import importlib.util
import ipaddress
from contextlib import closing
from pathlib import Path
from typing import Annotated, Literal

import typer

from ...tiering.errors import ServerError
from ..loading.opening import open_files, read_tokenizer
from ..loading.progress import shown
from .console import importing, print_json, say
from .options import Settings, SourceOptions

PORT = 8000
_NEEDED = ("starlette", "uvicorn", "prometheus_client", "llguidance")


def command(
    source: SourceOptions,
    settings: Settings,
    host: Annotated[str, typer.Option(metavar="NAME", help="Address to listen on; this machine only by default.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Port; 0 is any that is free.")] = PORT,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the model in requests.")] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", envvar="PENSTOCK_API_KEY", help="What clients have to send; other users see options."
        ),
    ] = None,
    rows: Annotated[int, typer.Option(metavar="N", min=1, help="Requests that are answered at a time.")] = 32,
    queue: Annotated[int, typer.Option(metavar="N", min=0, help="Requests that may wait; more are refused.")] = 256,
    batch: Annotated[
        Literal["exact", "fast", "auto"],
        typer.Option(
            help="exact: every answer has the bits that it has alone. fast: several rows may be summed otherwise. "
            "auto: exact as long as reading takes the time."
        ),
    ] = "exact",
) -> None:
    """Serve MODEL to clients of OpenAI's, Anthropic's and Ollama's interfaces."""
    missing = [each.replace("_", "-") for each in _NEEDED if importlib.util.find_spec(each) is None]
    if missing:
        raise ServerError(f"serve needs {', '.join(missing)}; run: pip install 'penstock[serve]'")
    config = settings.load()
    from ..server.running import listen

    with closing(listen(host, port)) as waiting:
        with importing():
            from ..loading.load import load_opened
            from ..server.answers.meters import Meters
            from ..server.answers.served import ServedModel
            from ..server.app import make_app
            from ..server.running import run_server
            from ..serving.engine import Engine

        with shown() as bar:
            opened = open_files(source, config.store.path)
            tokenizer = read_tokenizer(opened, "serve reads prompts with one")
            model = load_opened(opened, config, bar)
        with closing(model.penstock), closing(Engine(model, batch=batch, rows=rows, queue=queue)) as engine:
            meters = Meters()
            served = ServedModel(model, tokenizer, engine, name or _name_of(source.model), meters)
            app = make_app([served], meters, key=api_key, loopback=_is_loopback(host))
            address = f"http://{f'[{host}]' if ':' in host else host}:{waiting.getsockname()[1]}"
            if settings.json:
                print_json({"url": address, "model": served.name})
            else:
                say(f"penstock: {served.name} is served at {address}/v1")
            run_server(app, waiting, say)


def _name_of(model: str) -> str:
    """The name of a model in requests: a hub id as it is, else that of its folder or file."""
    path = Path(model).expanduser()
    return (path.resolve().stem if path.is_file() else path.resolve().name) if path.exists() else model


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
