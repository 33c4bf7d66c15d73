"""The options that commands share, each defined once: output, configuration, its overrides, which model.

The texts of the overrides are the descriptions in config/settings.py.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

from ...tiering.units import GiB
from ..config.config import Config
from ..config.described import Setting, described
from ..config.settings import OVERRIDES
from ..loading.opening import ModelSource
from .console import say

QUOTA = 10 * GiB
"""Bytes that stored prompts may take where commands store some and no setting says how much."""
SHARED = "Model and output"
"""The group of options that commands share, in help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What every command takes: how to print, and the configuration with its overrides."""

    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=SHARED)] = False
    config_file: Annotated[
        str | None,
        typer.Option("--config", metavar="FILE", help="Configuration; else ./penstock.toml.", rich_help_panel=SHARED),
    ] = None
    overrides: Mapping[str, str | list[str] | None] = field(default_factory=dict)
    """By the names in OVERRIDES, as they are written; each is an option of its own (see ``expand``)."""

    def load(self) -> Config:
        """The configuration in effect. Raises ConfigError."""
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always", UserWarning)
            config = Config.load(self.config_file, **{name: _read(name, text) for name, text in self.overrides.items()})
        for each in found:
            say(f"penstock: note: {each.message}")
        return config


def _read(name: str, text: str | list[str] | None) -> str | float | None:
    """The value of an override; text that is no number where one is expected is named as it was written."""
    if isinstance(text, list):
        return ",".join(text)
    if text is None:
        return None
    if name in ("io_depth", "threads") and text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    if name == "kv_epsilon":
        with suppress(ValueError):
            return float(text)
    return text


def _overrides() -> list[inspect.Parameter]:
    """An option for each setting, described as the setting is."""
    return [
        inspect.Parameter(
            setting.keyword,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=None,
            annotation=Annotated[
                list[str] | None if setting.several else str | None,
                typer.Option(
                    setting.option, metavar=setting.name, help=_help(setting), rich_help_panel=_panel(setting.section)
                ),
            ],
        )
        for setting in described()
    ]


def _panel(section: str) -> str:
    """Each of its options overrides a key of this section of the file."""
    return f"Settings of [{section}]"


def _help(setting: Setting) -> str:
    may_be = "" if setting.plain else f" ({setting.kind})"
    several = " Repeat it, or separate by commas." if setting.several else ""
    return f"{setting.brief.removesuffix('.')}{may_be}.{several} [{setting.section}] {setting.key}."


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions(ModelSource):
    """Which model, and how it may be fetched."""

    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Checkpoint folder, GGUF file, hub id, or packed bundle.")
    ]
    revision: Annotated[
        str | None,
        typer.Option("--revision", metavar="NAME", help="Branch, tag or commit on the hub.", rich_help_panel=SHARED),
    ] = None
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run Python code that comes with the model.", rich_help_panel=SHARED),
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SeveralSources:
    """Which models, and how they may be fetched."""

    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Checkpoint folders, hub ids, or bundles.")]
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="NAME", help="Branch, tag or commit on the hub, of one model.")
    ] = None
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the models.")
    ] = False

    def each(self) -> list[ModelSource]:
        """The models, one by one."""
        if self.revision is not None and len(self.models) > 1:
            raise typer.BadParameter("it is of one model; several are given", param_hint="--revision")
        return [
            ModelSource(model=model, revision=self.revision, trust_remote_code=self.trust_remote_code)
            for model in self.models
        ]


TraceFile = Annotated[
    str | None,
    typer.Option(
        "--trace", metavar="FILE", help="Record reads, stalls and layers, for ui.perfetto.dev.", rich_help_panel=SHARED
    ),
]
"""Where a command that runs the model writes a trace of it."""


def expand(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with each parameter whose type is one of the dataclasses above replaced by that class's options."""
    groups = {
        name: group
        for name, group in get_type_hints(command).items()
        if name != "return" and isinstance(group, type) and is_dataclass(group)
    }
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        group = groups.get(parameter.name)
        parameters += _parameters(group) if group else [parameter]

    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = _gathered(group, values)
        command(**values)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    required_first = sorted(parameters, key=lambda parameter: parameter.default is not inspect.Parameter.empty)
    run.__signature__ = inspect.Signature(required_first)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _parameters(group: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        option
        for name, parameter in inspect.signature(group).parameters.items()
        for option in (
            _overrides()
            if name == "overrides"
            else [parameter.replace(annotation=hints[name], kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)]
        )
    ]


def _gathered(group: type[Any], values: dict[str, Any]) -> Any:
    """An object of ``group``, with its options taken out of ``values``."""
    own = {each.name: values.pop(each.name) for each in fields(group) if each.name != "overrides"}
    if issubclass(group, Settings):
        own["overrides"] = {name: values.pop(name) for name in OVERRIDES}
    return group(**own)
