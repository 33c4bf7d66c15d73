"""The configuration: defaults, then a TOML file, then keyword overrides; frozen and strict."""

import difflib
import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...tiering.errors import ConfigError
from ...tiering.policy.placement.placement import with_working_memory
from ...tiering.units import GiB, format_size
from . import configfile
from .settings import OVERRIDES, Compute, Experts, Io, Kv, MemorySettings, Store, Weights

_FEW = 1 << 16
_SIZES = {"memory": ("host", "floor", "device", "flash"), "kv": ("host", "device", "flash", "prefix")}
"""Keys that are sizes, by section."""


class Fault(NamedTuple):
    """The first thing wrong with raw settings; ``value`` as written, ``key`` empty for a whole section."""

    section: str
    key: str
    value: object
    what: str


class Config(BaseModel):
    """What the user wants. Immutable; sizes are bytes or "auto". Every bad key or value raises ConfigError."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    memory: MemorySettings = MemorySettings()
    store: Store = Field(default_factory=Store)  # at each call: it depends on the home folder
    weights: Weights = Weights()
    experts: Experts = Experts()
    kv: Kv = Kv()
    io: Io = Io()
    compute: Compute = Compute()

    def __init__(self, **sections: Any) -> None:
        if fault := find_fault(sections):
            raise ConfigError(f"{_in_file(fault)}: {fault.what}")
        super().__init__(**sections)

    @classmethod
    def load(cls, path: str | Path | None = None, **overrides: Any) -> Self:
        """The file at ``path`` (else ./penstock.toml, else ~/.config/penstock/penstock.toml, else defaults), then
        ``overrides`` by the names in OVERRIDES; an override of None counts as not given.

        Raises ConfigError (file, key, value, what is right).
        """
        file = Path(path) if path is not None else configfile.usual_file()
        raw = configfile.read(file) if file else {}
        if fault := find_fault(raw):
            raise ConfigError(f"{file}: {_in_file(fault)}: {fault.what}")
        for section, values in raw.items():
            for key, value in values.items():
                _warn_of_few_bytes(section, key, value, f"[{section}] {key}")
        return cls(**raw).override(**overrides)

    def override(self, **overrides: Any) -> Self:
        """A copy with these overrides; None counts as not given. Raises ConfigError."""
        raw: dict[str, dict[str, Any]] = self.model_dump()
        for name, value in overrides.items():
            if name not in OVERRIDES:
                raise ConfigError(f"{name} = {_show(value)}: {_unknown(name, OVERRIDES, 'option')}")
            if value is not None:
                section, key = OVERRIDES[name]
                raw[section][key] = value
                _warn_of_few_bytes(section, key, value, name)
        if fault := find_fault(raw):
            name = next(name for name, place in OVERRIDES.items() if place == (fault.section, fault.key))
            raise ConfigError(f"{name} = {_show(fault.value)}: {fault.what}")
        return type(self)(**raw)

    @property
    def flash_limit(self) -> int | None:
        """Bytes that all bundles may take together; None where only the drive's free space bounds them."""
        return _bytes_or_none(self.memory.flash)

    @property
    def kv_host(self) -> int | None:
        """Bytes of host memory for KV in pages; None where transformers keeps it."""
        return _bytes_or_none(self.kv.host)

    @property
    def kv_flash_limit(self) -> int | None:
        """Bytes that KV may take on flash; None where only the drive's free space bounds them."""
        return _bytes_or_none(self.kv.flash)

    @property
    def prefix_quota(self) -> int | None:
        """Bytes that prompts may take in the store; None where none are kept."""
        return _bytes_or_none(self.kv.prefix)

    @property
    def host_floor(self) -> int | None:
        """Bytes of host memory that are kept under pressure; None for the least that a model runs with."""
        return _bytes_or_none(self.memory.floor)

    @property
    def direct(self) -> bool | None:
        """Direct reads: no, or (None) where the file system can."""
        return False if self.io.backend == "buffered" else None

    @property
    def aligned(self) -> bool:
        """Whether weights are for a device that has memory, and an allocator, of its own."""
        return self.compute.device.startswith("cuda")

    def host_budget(self, model_bytes: int | None = None) -> int:
        """Bytes of host memory to work in: as written; for "auto" what fits this machine and a model whose weights have
        ``model_bytes`` (None: not known)."""
        if self.memory.host != "auto":
            return self.memory.host
        from ...kernels.machine.machine import read_available_memory  # here: it may load torch

        available = read_available_memory()
        return auto_host_memory(available, available if model_bytes is None else with_working_memory(model_bytes))

    def to_toml(self) -> str:
        """The whole configuration as a commented file; reading it gives an equal Config."""
        return configfile.write(
            (section, [(k, f.description or "", getattr(part, k)) for k, f in type(part).model_fields.items()])
            for section, part in self
        )


def _warn_of_few_bytes(section: str, key: str, value: object, name: str) -> None:
    """Warn of a size without a unit that is next to nothing: it was meant in others than bytes."""
    text = str(value)
    if key in _SIZES.get(section, ()) and text.isascii() and text.isdigit() and 0 < int(text[:20]) < _FEW:
        warnings.warn(f'{name} = {text} means {text} bytes; with a unit it is "{text}MiB" or "{text}GiB"', stacklevel=3)


def _bytes_or_none(size: int | Literal["auto", "off"]) -> int | None:
    """``size`` if it is one; None for a word."""
    return size if isinstance(size, int) else None


def auto_host_memory(available: int, model_bytes: int) -> int:
    """Budget in bytes for ``host = "auto"``, of ``available`` bytes, for a model that can use ``model_bytes``. Pure.

    Leaves 2 GiB or a quarter free, whichever is more (half where there are less than 4 GiB): past that a machine swaps,
    and speed falls tenfold at a higher hit ratio.
    """
    headroom = max(available // 4, min(2 * GiB, available // 2))
    return max(0, min(available - headroom, model_bytes))


def find_fault(raw: Mapping[str, Any]) -> Fault | None:
    """What is wrong with settings as read from a file (section -> key -> value), or None."""
    for section, values in raw.items():
        field = Config.model_fields.get(section)
        if field is None:
            return Fault(section, "", values, _unknown_section(section, values))
        model: Any = field.annotation
        if isinstance(values, model):
            continue
        if not isinstance(values, Mapping):
            return Fault(section, "", values, f"this is a section, with keys: {', '.join(model.model_fields)}")
        try:
            model.model_validate(dict(values))
        except ValidationError as invalid:
            error = invalid.errors()[0]
            key = str(error["loc"][0])
            return _fault(section, key, values[key], model, error)
    return _floor_above_ceiling(raw.get("memory", {})) or _prompts_of_lossy_pages(raw.get("kv", {}))


def _floor_above_ceiling(memory: Any) -> Fault | None:
    found = memory if isinstance(memory, MemorySettings) else MemorySettings.model_validate(dict(memory))
    if found.host == "auto" or found.floor == "auto" or found.floor <= found.host:
        return None
    shown = format_size(found.host)
    return Fault("memory", "floor", found.floor, f"it is above host, which is {shown}; lower it or raise host")


def _prompts_of_lossy_pages(kv: Any) -> Fault | None:
    found = kv if isinstance(kv, Kv) else Kv.model_validate(dict(kv))
    if found.prefix == "off" or found.format == "as-is":
        return None
    return Fault("kv", "format", found.format, 'prompts are kept as they are; take "as-is", or prefix = "off"')


def _fault(section: str, key: str, value: object, model: type[BaseModel], error: Any) -> Fault:
    if error["type"] == "extra_forbidden":
        return Fault(section, key, value, _unknown(key, model.model_fields, f"key in [{section}]"))
    if error["type"] == "value_error":
        return Fault(section, key, value, str(error["ctx"]["error"]))
    choices = get_args(model.model_fields[key].annotation)
    listed = ", ".join(f'"{choice}"' for choice in choices)
    what = f"it is one of {listed}" if len(choices) > 1 else f"this version has only {listed}"
    return Fault(section, key, value, what + _did_you_mean(str(value), choices))


def _unknown_section(name: str, values: object) -> str:
    for section, key in OVERRIDES.values():
        if not isinstance(values, Mapping) and (name == key or OVERRIDES.get(name) == (section, key)):
            return f"this stands outside of a section; write {key} = ... under [{section}]"
    return _unknown(name, Config.model_fields, "section")


def _unknown(name: str, known: Iterable[str], kind: str) -> str:
    known = list(known)
    return f"there is no such {kind}{_did_you_mean(name, known)}; there are: {', '.join(known)}"


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    known = list(known)
    if name in OVERRIDES and OVERRIDES[name][1] in known:
        name = OVERRIDES[name][1]  # the keyword's name, where the file has a shorter one
    close = difflib.get_close_matches(name.lower(), known, n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


def _in_file(fault: Fault) -> str:
    return f"[{fault.section}] {fault.key} = {_show(fault.value)}" if fault.key else f"[{fault.section}]"


def _show(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (str, bool)) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
