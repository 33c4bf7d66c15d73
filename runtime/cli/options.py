"""The options that commands share, each defined once: output, configuration, its overrides, which model."""

import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

from ..config.config import Config
from ..config.settings import FIT, OVERRIDES, WEIGHT_FORMATS
from ..loading.opening import ModelSource

_EVICTION = "auto, next-use, lfu, windowed-lfu, succinct, arc, lru."
PANEL = "Configuration (each overrides its key of the file)"


def _override(name: str, metavar: str, text: str) -> Any:
    section, key = OVERRIDES[name]
    flag = "--" + name.replace("_", "-")
    return typer.Option(flag, metavar=metavar, help=f"{text} [{section}] {key}.", rich_help_panel=PANEL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What every command takes: how to print, and the configuration with its overrides."""

    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False
    config_file: Annotated[
        str | None, typer.Option("--config", metavar="FILE", help="Configuration; else ./penstock.toml.")
    ] = None
    host_memory: Annotated[str | None, _override("host_memory", "SIZE", 'Memory for weights: "2GiB", "auto".')] = None
    host_memory_floor: Annotated[
        str | None, _override("host_memory_floor", "SIZE", "What is kept of it under memory pressure.")
    ] = None
    device_memory: Annotated[
        str | None, _override("device_memory", "SIZE", "Memory of --device for weights and KV.")
    ] = None
    flash_limit: Annotated[str | None, _override("flash_limit", "SIZE", "Bound on all packed models.")] = None
    store: Annotated[str | None, _override("store", "FOLDER", "Where packed models lie.")] = None
    store_stripes: Annotated[
        list[str] | None,
        _override("store_stripes", "FOLDER", "Further drives; repeat it, or separate by commas."),
    ] = None
    weights_format: Annotated[
        str | None, _override("weights_format", "FORMAT", f"{', '.join(WEIGHT_FORMATS)}, {FIT}SIZE.")
    ] = None
    weights_experts: Annotated[str | None, _override("weights_experts", "FORMAT", "The same, of experts.")] = None
    weights_attention: Annotated[str | None, _override("weights_attention", "FORMAT", "Of attention.")] = None
    weights_dense: Annotated[str | None, _override("weights_dense", "FORMAT", "Of other layers.")] = None
    weights_embeddings: Annotated[str | None, _override("weights_embeddings", "FORMAT", "Of embeddings.")] = None
    weights_output: Annotated[str | None, _override("weights_output", "FORMAT", "Of the output layer.")] = None
    weights_quality: Annotated[str | None, _override("weights_quality", "QUALITY", "full, adaptive, base.")] = None
    experts_eviction: Annotated[str | None, _override("experts_eviction", "POLICY", _EVICTION)] = None
    experts_prefetch: Annotated[str | None, _override("experts_prefetch", "WHEN", "auto, off.")] = None
    experts_misses: Annotated[
        str | None, _override("experts_misses", "WAY", "copy, auto: those that are not on --device.")
    ] = None
    experts_products: Annotated[str | None, _override("experts_products", "WAY", "each, grouped: on cuda.")] = None
    kv_host_memory: Annotated[
        str | None, _override("kv_host_memory", "SIZE", "Memory for KV, a part of --host-memory; the rest is on flash.")
    ] = None
    kv_device_memory: Annotated[
        str | None, _override("kv_device_memory", "SIZE", "Memory for KV, a part of --device-memory.")
    ] = None
    kv_flash_limit: Annotated[str | None, _override("kv_flash_limit", "SIZE", "Bound on KV on flash.")] = None
    kv_format: Annotated[str | None, _override("kv_format", "FORMAT", "as-is, int8, int4, mixed.")] = None
    kv_attention: Annotated[
        str | None, _override("kv_attention", "KIND", "exact, certified, window, h2o, snapkv, quest.")
    ] = None
    kv_epsilon: Annotated[
        str | None, _override("kv_epsilon", "SHARE", "Of a softmax, that certified attention may leave out.")
    ] = None
    kv_summary: Annotated[str | None, _override("kv_summary", "KIND", "What it keeps of keys: int8, int4, boxes.")] = (
        None
    )
    kv_budget: Annotated[
        str | None, _override("kv_budget", "SIZE", "Tokens for window, h2o, snapkv and quest, or a share like 25%.")
    ] = None
    kv_layers: Annotated[str | None, _override("kv_layers", "KIND", "even, by-need.")] = None
    kv_prefix: Annotated[str | None, _override("kv_prefix", "SIZE", "Room for prompts that come again; off.")] = None
    kv_namespace: Annotated[
        str | None, _override("kv_namespace", "NAME", "Prompts are found again only under this name.")
    ] = None
    io_backend: Annotated[str | None, _override("io_backend", "BACKEND", "auto, io_uring, threads, buffered.")] = None
    io_depth: Annotated[str | None, _override("io_depth", "N", 'Reads in flight, or "auto".')] = None
    device: Annotated[str | None, _override("device", "DEVICE", "auto, cpu, cuda:0, emulated:8GB.")] = None
    threads: Annotated[str | None, _override("threads", "N", 'Threads that compute, or "auto".')] = None

    def load(self) -> Config:
        """The configuration in effect. Raises ConfigError."""
        overrides: dict[str, str | float | list[str] | None] = {name: getattr(self, name) for name in OVERRIDES}
        for name in ("io_depth", "threads"):
            text = overrides[name]
            if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 10:
                overrides[name] = int(text)
        if self.kv_epsilon is not None:
            with suppress(ValueError):  # what is no number is named as it was written
                overrides["kv_epsilon"] = float(self.kv_epsilon)
        if self.store_stripes is not None:
            overrides["store_stripes"] = ",".join(self.store_stripes)
        return Config.load(self.config_file, **overrides)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source(ModelSource):
    """Which model, and how it may be fetched."""

    model: Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint folder, hub id, or packed bundle.")]
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="NAME", help="Branch, tag or commit on the hub.")
    ] = None
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
    ] = False


TraceFile = Annotated[
    str | None, typer.Option("--trace", metavar="FILE", help="Record reads, stalls and layers, for ui.perfetto.dev.")
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
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    required_first = sorted(parameters, key=lambda parameter: parameter.default is not inspect.Parameter.empty)
    run.__signature__ = inspect.Signature(required_first)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _parameters(group: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        parameter.replace(annotation=hints[name], kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for name, parameter in inspect.signature(group).parameters.items()
    ]
