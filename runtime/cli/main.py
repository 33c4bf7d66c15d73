"""The command ``penstock``: its sub-commands, and the exit codes of errors, Ctrl-C and closed pipes."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ...tiering.errors import PenstockError
from ..config import instructions
from .console import BROKEN_PIPE, INTERRUPTED, drop_output, fail, say
from .help import EXAMPLES, Command, write_examples
from .quick_imports import own_process

COMMANDS = (
    "generate",
    "chat",
    "serve",
    "batch",
    "pack",
    "verify",
    "inspect",
    "plan",
    "profile",
    "eval",
    "doctor",
    "config",
    "bench",
    "ls",
    "rm",
    "du",
    "prune",
    "cache",
)
"""The commands, as help lists them. Each is a module of this room."""

_ABOUT = (
    "Run models that are larger than this machine's memory. MODEL is a checkpoint folder, a GGUF file, a hub id or a "
    "packed bundle."
)


class _Guarded(TyperGroup):
    """A group whose sub-commands end in an exit code, never in a traceback of an error of penstock."""

    def invoke(self, ctx: Any) -> Any:
        """Run the sub-command."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except PenstockError as error:
            fail(error)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            if sys.stdout.isatty():
                say("")  # the text, and the terminal's ^C, have left the cursor within a line
            say(f"penstock: {error}" if str(error) else "penstock: interrupted")
            raise typer.Exit(INTERRUPTED) from error
        except BrokenPipeError as error:
            drop_output()
            raise typer.Exit(BROKEN_PIPE) from error

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples."""
        write_examples(self.epilog, formatter)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"penstock {version('penstock')}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    instructions.check()


def make_app(names: Sequence[str] = COMMANDS) -> typer.Typer:
    """The command line with the commands ``names``, whose modules are imported."""
    from .options import expand

    app = typer.Typer(
        cls=_Guarded,
        help=_ABOUT,
        epilog=EXAMPLES[""],
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,  # plain help: it answers faster
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for name in names:
        module = import_module(f".{name}", __package__)
        if name != "cache":
            app.command(name, cls=Command, epilog=EXAMPLES.get(name))(expand(module.command))
            continue
        group = typer.Typer(help="Prompts stored on flash.", no_args_is_help=True, rich_markup_mode=None)
        for each, command in module.COMMANDS.items():
            group.command(each, cls=Command)(expand(command))
        app.add_typer(group, name=name)
    return app


def main(arguments: Sequence[str]) -> int:
    """Run one command, and return its exit code: 0, 1 an error, 2 bad usage, 130 Ctrl-C, 141 closed pipe."""
    # One command is all that is imported where it is named; help, and what is misspelled, need all.
    names = [name for name in arguments[:1] if name in COMMANDS] or COMMANDS
    try:
        make_app(names)(args=list(arguments), prog_name="penstock")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        say("penstock: interrupted")
        return INTERRUPTED
    return 0


def run() -> None:
    """Entry point of the ``penstock`` script."""
    own_process()
    sys.exit(main(sys.argv[1:]))
