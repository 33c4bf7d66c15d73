"""Values of settings: which are right, and how they are written."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator

from ...tiering.errors import ConfigError
from ...tiering.kv.selection.kv_budget.budget import parse_budget
from ...tiering.units import parse_size

WEIGHT_FORMATS = ("as-is", "lossless", "int8", "int4", "int4-32", "int4-64", "int4-128", "nested", "stacked")
"""Formats that weights can be stored in, by the names of kernels/formats, which takes torch to load."""

EXACT_FORMATS = ("as-is", "lossless")
"""Those that keep every bit."""

FIT = "fit:"
"""Begins a format that is chosen for each matrix, so that all fit the size that follows."""

MOST = 1024
"""Bound on counts (threads, reads in flight): what is above it is a slip of the pen."""

MOST_BYTES = 1 << 60


def _size(value: object, other: str = "auto") -> object:
    if value == other:
        return value
    try:
        size = parse_size(value)  # type: ignore[arg-type]
    except OverflowError:
        size = MOST_BYTES + 1
    except ConfigError as error:
        raise ValueError(f'{error}; "{other}" is possible too') from error
    if size > MOST_BYTES:
        raise ValueError("no machine has so many bytes")
    return size


def _quota(value: object) -> object:
    return _size(value, "off")


def _count(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST):
        return value
    raise ValueError(f'it is a number from 1 to {MOST} or "auto"')


def _share(value: object) -> object:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1:
        return float(value)
    raise ValueError("it is a number between 0 and 1, like 1e-3")


def _budget(value: object) -> object:
    if value == "auto":
        return value
    try:
        parse_budget(value)
    except ConfigError as error:
        raise ValueError(f'{error}; "auto" is possible too') from error
    return str(value)  # a number would be printed as one of bytes


def _folder(value: object) -> object:
    if not isinstance(value, (str, Path)) or not str(value).strip():
        raise ValueError("it is the path of a folder")
    try:
        str(value).encode()
        if "\0" in str(value):
            raise ValueError("a path has no zero bytes")
        return Path(value).expanduser().absolute()
    except UnicodeEncodeError as error:
        raise ValueError("the path is not Unicode, so no configuration file can name it") from error
    except RuntimeError as error:
        raise ValueError(f"{error}; write the path out") from error


def _folders(value: object) -> object:
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    if not isinstance(value, (list, tuple)):
        raise ValueError('it is a list of folders, like ["/mnt/b/penstock"]')
    folders = tuple(_folder(part.strip() if isinstance(part, str) else part) for part in value)
    if len(set(folders)) < len(folders):
        raise ValueError("a folder is named twice")
    return folders


def _device(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?|emulated", value):
        return value
    if isinstance(value, str) and value.startswith("emulated:"):
        try:
            if parse_size(value.removeprefix("emulated:")):
                return value
        except (ConfigError, OverflowError):
            pass
        raise ValueError('behind "emulated:" stand the bytes that are copied in a second, as in "emulated:8GB"')
    raise ValueError('it is "auto", "cpu", "cuda", "cuda:0", ..., "emulated" or "emulated:8GB"')


def fit_size(name: str) -> int | None:
    """Bytes in ``fit:SIZE``; None for other formats. Raises ConfigError where SIZE is none."""
    return parse_size(name.removeprefix(FIT)) if name.startswith(FIT) else None


def _general(value: object) -> object:
    if value == "auto":
        return value
    if not isinstance(value, str) or not value.startswith(FIT):
        return _format(value, f", {FIT}SIZE, auto")
    try:
        size = fit_size(value)
    except (ConfigError, OverflowError) as error:
        raise ValueError(f"it takes the size of the whole bundle, as in {FIT}3.2GiB") from error
    if not size or size > MOST_BYTES:
        raise ValueError(f"no bundle has that size; write it as in {FIT}3.2GiB")
    return value


def _format(value: object, also: str = "") -> object:
    if value in WEIGHT_FORMATS:
        return value
    close = difflib.get_close_matches(str(value).lower(), WEIGHT_FORMATS, n=1)
    hint = f'; did you mean "{close[0]}"?' if close else ""
    raise ValueError(f"this version has {', '.join(WEIGHT_FORMATS)}{also}{hint}")


def _part(value: object) -> object:
    if isinstance(value, str) and value.startswith(FIT):
        raise ValueError("a size is that of the whole bundle: only format can have one")
    return value if value == "auto" else _format(value)


@dataclass(frozen=True, slots=True)
class Written:
    """How a value is written: its name in usage lines, and its type in words. ``plain``: the name says it all."""

    name: str
    words: str
    plain: bool = False


Size = Annotated[int | Literal["auto"], BeforeValidator(_size), Written("SIZE", "size, or auto")]
Count = Annotated[int | Literal["auto"], BeforeValidator(_count), Written("N", f"1 to {MOST}, or auto")]
Folder = Annotated[Path, BeforeValidator(_folder), Written("FOLDER", "path", plain=True)]
Folders = Annotated[tuple[Path, ...], BeforeValidator(_folders), Written("FOLDER", "list of paths", plain=True)]
Quota = Annotated[int | Literal["off"], BeforeValidator(_quota), Written("SIZE", "size, or off")]
Share = Annotated[float, BeforeValidator(_share), Written("SHARE", "number between 0 and 1")]
BudgetSetting = Annotated[str, BeforeValidator(_budget), Written("SIZE", "tokens, a share like 25%, or auto")]
DeviceSetting = Annotated[
    str,
    BeforeValidator(_device),
    Written("DEVICE", "auto, cpu, cuda, cuda:0, ..., emulated, emulated:8GB"),
]
_NAMES = ", ".join((*WEIGHT_FORMATS, f"{FIT}SIZE", "auto"))
FormatSetting = Annotated[str, BeforeValidator(_general), Written("FORMAT", _NAMES)]
PartFormat = Annotated[str, BeforeValidator(_part), Written("FORMAT", "a format, or auto")]
