"""Reference pages from the code: the configuration and the command line. A hook of mkdocs."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import typer
from typer.core import TyperGroup

from penstock.runtime.cli.main import make_app
from penstock.runtime.config.described import Setting, described, sections
from penstock.runtime.config.settings import OVERRIDES

PAGES = "reference/configuration.md", "reference/command-line.md"
SHARED = {"json", "config_file", *OVERRIDES}
"""Parameters that every command takes."""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages. Called by mkdocs when it has found the written ones."""
    from mkdocs.structure.files import File

    for path, lines in zip(PAGES, (configuration(), command_line()), strict=True):
        files.append(File.generated(config, path, content="\n".join(lines) + "\n"))
    return files


# --- the configuration ------------------------------------------------------------------------------------------------


def configuration() -> Iterator[str]:
    """The page of all keys of the configuration file."""
    yield "# Configuration\n"
    yield (
        "Every key is optional. Values come from the defaults, then from `./penstock.toml` or "
        "`~/.config/penstock/penstock.toml`, then from keywords of `penstock.load` or options of the command line. "
        "`penstock config` prints the values in effect as a commented file. An unknown key or a wrong value is a "
        "`ConfigError` that says what is right.\n"
    )
    yield (
        'A size is a number of bytes, or text like `"1.5GiB"` or `"800MB"`. A relative path is relative to the file.\n'
    )
    about = sections()
    for section, settings in groupby(described(), lambda setting: setting.section):
        yield f"## [{section}]\n"
        yield about[section] + "\n"
        for setting in settings:
            yield from _key(setting)


def _key(setting: Setting) -> Iterator[str]:
    yield f"### {setting.key} {{ #{setting.section}-{setting.key} }}\n"
    yield setting.text + "\n"
    yield from _table(
        ("", ""),
        [
            ("type", setting.kind),
            ("default", f"`{setting.default}`"),
            ("example", f"`{setting.key} = {setting.example}`"),
            ("keyword", f"`{setting.keyword}`"),
            ("option", f"`{setting.option} {setting.name}`"),
        ],
    )


# --- the command line -------------------------------------------------------------------------------------------------


def command_line() -> Iterator[str]:
    """The page of all commands."""
    yield "# Command line\n"
    yield (
        "Errors are one line on stderr, with exit code 1. Wrong usage is exit code 2, Ctrl-C 130, a closed pipe 141.\n"
    )
    yield "## Options of every command {#shared}\n"
    commands = dict(leaves(typer.main.get_command(make_app()), "penstock"))
    some = next(iter(commands.values()))
    yield from _options(each for each in some.params if each.name in SHARED)
    for name, command in commands.items():
        own = [each for each in command.params if each.name not in SHARED]
        arguments = " ".join(_name(each) for each in own if each.param_type_name == "argument")
        yield f"## {name}\n"
        yield f"```\n{' '.join((name, arguments)).strip()} [OPTIONS]\n```\n"
        yield _escaped(command.help or "") + "\n"
        if own:
            yield from _options(own)


def leaves(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The commands that do something, by their full names."""
    if not isinstance(command, TyperGroup):
        yield name, command
        return
    for own, each in command.commands.items():
        yield from leaves(each, f"{name} {own}")


def _name(parameter: Any) -> str:
    return parameter.metavar or parameter.name.upper()


def _options(parameters: Iterable[Any]) -> Iterator[str]:
    rows = []
    for each in parameters:
        if each.param_type_name == "argument":
            written = _name(each)
        else:
            value = "" if each.is_flag else f" {_name(each)}"
            written = ", ".join((*each.opts, *each.secondary_opts)) + value
        note = " **Required.**" if each.required and each.param_type_name != "argument" else ""
        rows.append((f"`{written}`", (each.help or "") + note))
    yield from _table(("option", "meaning"), rows)


def _table(head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield f"| {head[0]} | {head[1]} |\n| --- | --- |"
    for left, right in rows:
        yield f"| {left} | {right if right.startswith('`') else _escaped(right)} |"
    yield ""


def _escaped(text: str) -> str:
    """Text of a help page as Markdown: brackets are no links, and a bar ends no cell."""
    return text.replace("[", "\\[").replace("|", "\\|")
