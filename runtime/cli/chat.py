"""``penstock chat``: talk to a model in the terminal."""

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...tiering.errors import ConfigError, PrefixError, RequestError, TextError
from ..loading.opening import ModelSource, open_files, read_tokenizer
from ..loading.progress import shown
from .console import importing
from .options import QUOTA, Settings, SourceOptions
from .quick_imports import uncollected
from .sampling import SamplingOptions

if TYPE_CHECKING:
    from ..chat.partner import Partner
    from ..chat.reading import Reader
    from ..chat.saved import SavedChats
    from ..config.config import Config


def command(
    source: SourceOptions,
    settings: Settings,
    sampling: SamplingOptions,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="What the model is told before.")] = None,
    load: Annotated[str | None, typer.Option(metavar="NAME", help="Go on with a saved chat.")] = None,
    tokens: Annotated[
        int | None, typer.Option("-n", "--tokens", metavar="N", min=1, help="Most tokens of an answer.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Show answers as they are, without formatting.")] = False,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Which model of the server.")] = None,
    api_key: Annotated[
        str | None, typer.Option(metavar="KEY", envvar="PENSTOCK_API_KEY", help="What the server wants to be sent.")
    ] = None,
) -> None:
    """Talk to MODEL, or to that of a server: MODEL may be an address, http://127.0.0.1:8000. /help lists the commands
    of the chat."""
    sampling.check()
    if settings.json:
        raise typer.BadParameter("a chat is no JSON; take generate or serve", param_hint="--json")
    config = settings.load()
    remote = source.model.startswith(("http://", "https://"))
    _need([*(["prompt_toolkit"] if sys.stdin.isatty() else []), *(["openai"] if remote else [])])
    wanted = {**sampling.given(), "seed": sampling.seed, "stop": sampling.stop, "max_tokens": tokens}
    with (
        _served(source.model, name, api_key, wanted) if remote else _loaded(source, settings, config, wanted) as partner
    ):
        with uncollected():
            import asyncio  # here: help answers faster

            from ...tiering.store.bundle.folder import CHATS
            from ..chat.saved import SavedChats
        asyncio.run(_talk(partner, SavedChats(config.store.path / CHATS), system, load, plain=plain))


def _need(needed: list[str]) -> None:
    """Raise ConfigError if a library is missing."""
    missing = [each.replace("_", "-") for each in needed if importlib.util.find_spec(each) is None]
    if missing:
        raise ConfigError(f"chat needs {', '.join(missing)}; run: pip install 'penstock[chat]'")


@contextmanager
def _served(url: str, name: str | None, key: str | None, wanted: Mapping[str, Any]) -> "Iterator[Partner]":
    """The model of the server at ``url``."""
    from ..chat.remote import connect

    yield connect(url, name, key, wanted)


@contextmanager
def _loaded(source: ModelSource, settings: Settings, config: "Config", wanted: dict[str, Any]) -> "Iterator[Partner]":
    """MODEL, loaded. Prompts are stored for the time of the chat where the configuration keeps none for longer."""
    passing = (
        config.prefix_quota is None and settings.overrides.get("kv_prefix") is None and config.kv.format == "as-is"
    )
    if passing:
        config = config.override(kv_prefix=QUOTA, kv_namespace="chat")
    with importing():
        from ..chat.local import LocalPartner, forget_prompts
        from ..loading.load import load_opened
        from ..serving.defaults import sampling_of
        from ..serving.engine import Engine
        from ..serving.text.chats import ChatTemplate

    with shown() as bar:
        opened = open_files(source, config.store.path)
        tokenizer = read_tokenizer(opened, "chat reads what you say with one")
        if not ChatTemplate(tokenizer).exists:
            raise RequestError(f"{source.model} has no chat template; have a text continued: penstock generate")
        model = load_opened(opened, config, bar)
    seed, stops, most = wanted.pop("seed"), wanted.pop("stop") or [], wanted.pop("max_tokens")
    with closing(model.penstock):
        try:
            with closing(Engine(model)) as engine:
                sampling = sampling_of(model.generation_config, **wanted)
                yield LocalPartner(model, tokenizer, engine, source.model, sampling, seed=seed, stops=stops, most=most)
        finally:
            if passing:
                with suppress(PrefixError, OSError):  # the next prompt that needs the room takes it
                    forget_prompts(model)


async def _talk(partner: "Partner", saved: "SavedChats", system: str | None, load: str | None, *, plain: bool) -> None:
    from ..chat.conversation import Conversation
    from ..chat.screen import Screen
    from ..chat.session import Session

    chat = Conversation() if load is None else await saved.load(load)
    if system is not None:
        chat.system = system
    screen = Screen(plain=plain)
    for turn in chat.turns:
        screen.turn(turn.role, turn.content)
    session = Session(partner, _reader(saved), screen, saved, chat)
    if sys.stdin.isatty():
        screen.say(f"{partner.name}. /help lists the commands, Ctrl-D leaves.")
    await session.run()
    if session.failed and not sys.stdin.isatty():
        raise typer.Exit(1)


def _reader(saved: "SavedChats") -> "Reader":
    from ..chat.reading import PipeReader, TerminalReader

    if not sys.stdin.isatty():
        return PipeReader()
    try:
        return TerminalReader(saved.folder / "history")
    except OSError as error:
        raise TextError(f"{saved.folder} cannot be used: {error.strerror}; choose another --store") from error
