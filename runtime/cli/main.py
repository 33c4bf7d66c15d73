"""The command ``penstock``: its sub-commands, and the exit codes of errors, Ctrl-C and closed pipes."""

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ...tiering.errors import PenstockError
from ..config import instructions
from . import bench, cache, config, doctor, generate, inspect, pack, plan, profile, verify
from . import eval as evaluation
from .console import BROKEN_PIPE, INTERRUPTED, drop_output, fail, say
from .options import expand


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


app = typer.Typer(
    cls=_Guarded,
    help="Run Hugging Face models that are larger than this machine's memory.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: it answers faster
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"penstock {version('penstock')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    instructions.check()


for _module in (generate, pack, verify, inspect, plan, profile, evaluation, doctor, config, bench):
    app.command(_module.__name__.rpartition(".")[2])(expand(_module.command))

_cache = typer.Typer(help="Prompts stored on flash.", no_args_is_help=True, rich_markup_mode=None)
for _name, _command in cache.COMMANDS.items():
    _cache.command(_name)(expand(_command))
app.add_typer(_cache, name="cache")


def main(arguments: Sequence[str]) -> int:
    """Run one command, and return its exit code: 0, 1 an error, 2 bad usage, 130 Ctrl-C, 141 closed pipe."""
    try:
        app(args=list(arguments), prog_name="penstock")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        say("penstock: interrupted")
        return INTERRUPTED
    return 0


def run() -> None:
    """Entry point of the ``penstock`` script."""
    sys.exit(main(sys.argv[1:]))
