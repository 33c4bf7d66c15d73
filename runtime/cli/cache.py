"""``penstock cache``: list, save, check and remove prompts that are stored on flash."""

import sys
import time
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...tiering.errors import BundleError, CheckpointError, PrefixError
from ...tiering.prefix.tree import Record
from ...tiering.store.bundle.shelf import find_shelved, shelved
from ...tiering.units import format_size, parse_size
from ..loading.opening import OpenedModel, open_files, read_tokenizer
from ..loading.progress import shown
from .ages import parse_age
from .console import fail, importing, print_json, quiet_libraries
from .options import QUOTA, Settings, SourceOptions
from .tables import print_table
from .text import read_text, tokenizing

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...tiering.store.prefixes.prefixes import PrefixStore
    from ..config.config import Config

_WORDS = 16
"""Tokens that --text shows."""


def ls(
    settings: Settings,
    text: Annotated[bool, typer.Option("--text/--no-text", help="Show how each begins, in the clear.")] = True,
) -> None:
    """List the stored prompts, and the additions to them."""
    config = settings.load()
    store = _open(config)
    records = sorted(store.records(), key=lambda record: -record.used)
    if text:
        quiet_libraries()
    words = [_beginning(store, record, config.store.path) if text else None for record in records]
    if settings.json:
        entries = [_described(record) | ({"text": w} if text else {}) for record, w in zip(records, words, strict=True)]
        print_json({"folder": str(store.folder), "bytes": store.used_bytes(), "entries": entries})
        return
    names = {each.folder.name: each.name for each in shelved(config.store.path)}
    columns = ["model", "tokens", "size", "last used", "kept because", *(["text"] if text else [])]
    rows = [
        [
            names.get(record.label, record.label),
            record.tokens,
            format_size(record.length),
            datetime.fromtimestamp(record.used / 1e9).strftime("%Y-%m-%d %H:%M"),
            "saved" if record.explicit else "seen again",
            *([w or ""] if text else []),
        ]
        for record, w in zip(records, words, strict=True)
    ]
    print_table(
        f"{store.folder}: {format_size(store.used_bytes())}", columns, rows, wide=len(columns) - 1 if text else 0
    )


def save(
    source: SourceOptions,
    settings: Settings,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", metavar="TEXT", help='"-" reads stdin.')] = None,
    text: Annotated[str | None, typer.Option("--text", metavar="FILE", help="The prompt, in a file.")] = None,
) -> None:
    """Compute a prompt with MODEL and store it. Prompts that begin with it start at once, if --kv-prefix is given."""
    if (prompt is None) == (text is None):
        raise typer.BadParameter("give the prompt with -p, or a file with --text", param_hint="-p")
    config = settings.load()
    if config.prefix_quota is None:
        config = config.override(kv_prefix=QUOTA)
    content = read_text(text) if text is not None else sys.stdin.read() if prompt == "-" else str(prompt)
    with importing():
        from ..loading.load import load_opened

    with shown() as bar:
        opened = open_files(source, config.store.path)
        tokenizer = read_tokenizer(opened, "cache save reads the prompt with one")
        with tokenizing(tokenizer):
            ids: list[int] = tokenizer(content)["input_ids"]
        model = load_opened(opened, config, bar)
    with closing(model.penstock):
        report = _save(model, ids)
    left = len(ids) - report["tokens"]
    rest = f"; whole blocks of {report['block']} are, the last {left} are computed each time" if left else ""
    if settings.json:
        print_json(report)
    elif report["bytes"]:
        print(f"{report['tokens']} of {len(ids)} tokens stored, {format_size(report['bytes'])}{rest}")
    elif report["stored"]:
        print(f"{report['tokens']} of {len(ids)} tokens were stored already{rest}")
    if not report["stored"]:
        raise PrefixError(
            f"{report['tokens']} tokens find no room within {format_size(config.prefix_quota or QUOTA)}; "
            "raise --kv-prefix, or make room: penstock cache prune"
        )


def verify(settings: Settings) -> None:
    """Read all stored prompts and check them. The exit code is 1 if one is damaged."""
    config = settings.load()
    store = _open(config)
    with shown() as bar:
        wrong = store.verify(bar)
    if settings.json:
        print_json({"folder": str(store.folder), "intact": not wrong, "damaged": [str(error) for error in wrong]})
    elif not wrong:
        print(f"{store.folder}: all intact, {format_size(store.used_bytes())}")
    if wrong:
        if not settings.json:
            for error in wrong:
                fail(error)
        raise typer.Exit(1)


def prune(
    settings: Settings,
    to: Annotated[
        str | None, typer.Option("--to", metavar="SIZE", help="Until so much is left: least recently used first.")
    ] = None,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="AGE", help='What was not used for "12h", "7d", "4w".')
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="What is of this model, as ls names it.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything.")] = False,
) -> None:
    """Remove stored prompts."""
    if to is None and older_than is None and model is None and not everything:
        raise typer.BadParameter("say what goes: --to, --older-than, --model or --all", param_hint="--to")
    size = None if to is None else parse_size(to)
    before = None if older_than is None else time.time_ns() - parse_age(older_than) * 10**9
    config = settings.load()
    store = _open(config)
    if model is not None:
        model = _label(config.store.path, model, {record.label for record in store.records()})
    freed = store.prune(to=size, before=before, label=model, everything=everything)
    if settings.json:
        print_json({"folder": str(store.folder), "freed": freed, "bytes": store.used_bytes()})
    else:
        print(f"{format_size(freed)} came free, {format_size(store.used_bytes())} left")


COMMANDS: "dict[str, Callable[..., None]]" = {"ls": ls, "save": save, "verify": verify, "prune": prune}


def _label(bundles: Path, model: str, labels: set[str]) -> str:
    """The label of the stored prompts of ``model``: a bundle's folder, also under its name. Raises PrefixError."""
    if model in labels:
        return model
    with suppress(BundleError):
        if (label := find_shelved(bundles, model).folder.name) in labels:
            return label
    raise PrefixError(f"nothing is stored of a model {model}; penstock cache ls names those that are")


def _open(config: "Config") -> "PrefixStore":
    from ...tiering.store.prefixes.prefixes import PrefixStore

    return PrefixStore(config.store.path, config.prefix_quota or QUOTA, direct=config.direct)


def _save(model: Any, ids: list[int]) -> dict[str, Any]:
    """Compute and store the full blocks of ``ids``; the fields of ``--json``."""
    from ..prefixes.prefill import prefill

    handle = model.penstock
    prefixes = handle.prefixes
    if prefixes is None:
        raise PrefixError(handle.stats().prefix_problem)
    prefixes.check_length(len(ids))
    if not prefixes.can_go_on(model, ids):
        raise PrefixError(handle.stats().prefix_problem)
    kept = ids[: len(ids) // prefixes.block * prefixes.block]
    cache = handle.cache()
    done = prefixes.restore([*kept, 0], cache)
    began = time.perf_counter()
    prefill(model, kept, cache, block=prefixes.block)
    handle.synchronize()
    prefixes.note_prefill(len(kept) - done, time.perf_counter() - began)
    written = prefixes.save(ids, cache)
    return {
        "tokens": len(kept),
        "prompt_tokens": len(ids),
        "block": prefixes.block,
        "computed": len(kept) - done,
        "bytes": written,
        "stored": prefixes.count_stored(kept) == len(kept),
        "folder": str(prefixes.store.folder),
    }


def _described(record: Record) -> dict[str, Any]:
    """The fields of ``ls --json``."""
    return {
        "file": record.name,
        "model": record.label,
        "tokens": record.tokens,
        "bytes": record.length,
        "used": datetime.fromtimestamp(record.used / 1e9).astimezone().isoformat(timespec="seconds"),
        "saved": record.explicit,
    }


def _beginning(store: "PrefixStore", record: Record, bundles: Path) -> str | None:
    """The first words of a prompt; None where its bundle, which has the tokenizer, is gone."""
    folder = bundles / record.label / "model"
    try:
        tokenizer = read_tokenizer(OpenedModel(folder, None, trust_remote_code=False), "ls shows text with one")
        words = store.first_tokens(record)[:_WORDS]
        if max(words, default=0) >= len(tokenizer):
            return None  # it is not the model's, whatever the file says
        return " ".join(str(tokenizer.decode(words)).split())
    except (CheckpointError, PrefixError, FileNotFoundError, KeyError):
        return None
