"""``penstock batch``: work off a file of requests, as many at a time as share the reads best."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ...tiering.errors import BatchError
from ...tiering.units import format_size
from ..loading.opening import open_files, read_tokenizer
from ..loading.progress import shown
from .console import importing, print_json, say
from .options import Settings, SourceOptions

PREFIX = "2GiB"
"""Bytes that stored prompts may take where no setting says: beginnings are shared block by block."""
_NEEDED = ("starlette", "prometheus_client", "llguidance")


def command(
    source: SourceOptions,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Requests, as lines of OpenAI's batch interface.")],
    settings: Settings,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE", help="Where answers go; else FILE.answers.jsonl.")
    ] = None,
    rows: Annotated[int, typer.Option(metavar="N", min=1, help="Requests that are answered at a time.")] = 32,
    batch: Annotated[
        Literal["exact", "fast", "auto"],
        typer.Option(
            help="exact: every answer has the bits that it has alone. fast: several rows may be summed otherwise. "
            "auto: exact as long as reading takes the time."
        ),
    ] = "exact",
) -> None:
    """Answer the requests in FILE with MODEL. Killed at any moment, the same command goes on."""
    missing = [each.replace("_", "-") for each in _NEEDED if importlib.util.find_spec(each) is None]
    if missing:
        raise BatchError(f"batch needs {', '.join(missing)}; run: pip install 'penstock[serve]'")
    config = settings.load()
    if config.prefix_quota is None and settings.overrides.get("kv_prefix") is None:
        config = config.override(kv_prefix=PREFIX)
    requests = Path(file).expanduser()
    out = requests.with_name(f"{requests.name.removesuffix('.jsonl')}.answers.jsonl")
    out = out if output is None else Path(output).expanduser()
    if out.exists() and requests.exists() and out.samefile(requests):
        raise BatchError(f"{out} has the requests; name another file for the answers with -o")
    with importing():
        import asyncio  # here: help answers faster

        from ..batch.lines import read_lines
        from ..batch.running import run_batch
        from ..loading.load import load_opened
        from ..server.answers.meters import Meters
        from ..server.answers.served import ServedModel
        from ..server.app import make_app
        from ..serving.engine import Engine

    asyncio.run(read_lines(requests))  # what is wrong in it is said before anything is loaded
    with shown() as bar:
        opened = open_files(source, config.store.path)
        tokenizer = read_tokenizer(opened, "batch reads prompts with one")
        model = load_opened(opened, config, bar)
    with closing(model.penstock), closing(Engine(model, batch=batch, rows=rows, queue=sys.maxsize)) as engine:
        meters = Meters()
        app = make_app([ServedModel(model, tokenizer, engine, "model", meters)], meters)
        before = model.penstock.stats().report()["flash_bytes_read"]
        with _progress() as told:
            report = asyncio.run(run_batch(requests, out, app, engine, window=2 * rows, told=told))
        report.flash_bytes_read = model.penstock.stats().report()["flash_bytes_read"] - before
    figures = report.figures()
    if settings.json:
        print_json({"output": str(out), **figures})
    else:
        say(_summary(out, figures))
    if report.failed:
        raise BatchError(f"{report.failed} requests failed; the same command tries them again")


@contextmanager
def _progress() -> Iterator[Callable[[int, int, int], None]]:
    """A bar on stderr, where that is a terminal. Yields what it is told by."""
    if not sys.stderr.isatty():
        yield lambda done, of, tokens: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("answers"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[tokens]} tokens"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None, tokens=0)
        yield lambda done, of, tokens: bars.update(task, completed=done, total=of, tokens=tokens)


def _summary(out: Path, figures: dict[str, Any]) -> str:
    parts = [f"{figures['answered']} of {figures['requests']} requests answered"]
    if figures["found_answered"]:
        parts.append(f"{figures['found_answered']} were before")
    if figures["refused"]:
        parts.append(f"{figures['refused']} refused, their lines say why")
    if figures["answer_tokens"]:
        parts.append(f"{figures['answer_tokens']} tokens, {figures['tokens_per_second']:.1f}/s")
        parts.append(f"{format_size(round(figures['flash_bytes_per_token']))} read for each")
        parts.append(f"{figures['shared_share']:.0%} of the prompts' tokens shared")
    return f"penstock: {'; '.join(parts)}; {out}"
