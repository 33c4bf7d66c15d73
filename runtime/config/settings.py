"""The sections of the configuration: their keys, defaults, and which values are right."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ...tiering.errors import ConfigError
from ...tiering.kv.selection.kv_budget.budget import parse_budget
from ...tiering.units import parse_size

OVERRIDES: Mapping[str, tuple[str, str]] = {
    "host_memory": ("memory", "host"),
    "host_memory_floor": ("memory", "floor"),
    "device_memory": ("memory", "device"),
    "flash_limit": ("memory", "flash"),
    "store": ("store", "path"),
    "store_stripes": ("store", "stripes"),
    "weights_format": ("weights", "format"),
    "weights_experts": ("weights", "experts"),
    "weights_attention": ("weights", "attention"),
    "weights_dense": ("weights", "dense"),
    "weights_embeddings": ("weights", "embeddings"),
    "weights_output": ("weights", "output"),
    "weights_quality": ("weights", "quality"),
    "experts_eviction": ("experts", "eviction"),
    "experts_prefetch": ("experts", "prefetch"),
    "experts_misses": ("experts", "misses"),
    "experts_products": ("experts", "products"),
    "kv_host_memory": ("kv", "host"),
    "kv_device_memory": ("kv", "device"),
    "kv_flash_limit": ("kv", "flash"),
    "kv_format": ("kv", "format"),
    "kv_attention": ("kv", "attention"),
    "kv_epsilon": ("kv", "epsilon"),
    "kv_summary": ("kv", "summary"),
    "kv_budget": ("kv", "budget"),
    "kv_layers": ("kv", "layers"),
    "kv_prefix": ("kv", "prefix"),
    "kv_namespace": ("kv", "namespace"),
    "io_backend": ("io", "backend"),
    "io_depth": ("io", "depth"),
    "device": ("compute", "device"),
    "threads": ("compute", "threads"),
}
"""Keyword override (on the command line ``--host-memory`` ...) -> section and key of the file."""

WEIGHT_FORMATS = ("as-is", "lossless", "int8", "int4", "int4-32", "int4-64", "int4-128", "nested", "stacked")
"""Formats that weights can be stored in, by the names of kernels/formats, which takes torch to load."""

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


Size = Annotated[int | Literal["auto"], BeforeValidator(_size)]
Count = Annotated[int | Literal["auto"], BeforeValidator(_count)]
Folder = Annotated[Path, BeforeValidator(_folder)]
Folders = Annotated[tuple[Path, ...], BeforeValidator(_folders)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Memory(_Section):
    host: Size = Field(
        default="auto",
        description="Most memory penstock takes for weights, and for KV where [kv] host is set, in bytes or like "
        '"2GiB"; "auto" fits the machine.',
    )
    floor: Size = Field(
        default="auto",
        description="What is kept of it when the machine runs short of memory; it grows back when there is enough. "
        '"auto" is the least the model runs with, the value of host switches this off.',
    )
    device: Size = Field(
        default="auto",
        description="Most memory of [compute] device that penstock takes, for weights and for [kv] device; "
        '"auto" is what is free there, but for an eighth, as far as there is use for it. "emulated" needs a size.',
    )
    flash: Size = Field(
        default="auto",
        description='Most that all bundles in the store may take together; "auto" is what the drive has free.',
    )


class Store(_Section):
    path: Folder = Field(
        default_factory=lambda: Path("~/.cache/penstock").expanduser(),
        description="Folder of the packed models; on the fastest drive.",
    )
    stripes: Folders = Field(
        default=(),
        description="Folders on further drives: packing deals a model's blocks to all of them by measured speed.",
    )


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


Format = Annotated[str, BeforeValidator(_general)]
PartFormat = Annotated[str, BeforeValidator(_part)]


class Weights(_Section):
    format: Format = Field(
        default="as-is",
        description='How weights are stored: "as-is" and "lossless" keep every bit, "int8" and "int4" (or "int4-64", '
        '"int4-128": larger groups) are smaller. "nested" has the numbers of "int8", those of experts in two planes, '
        '"stacked" in three: the first alone can be computed with, see quality. "fit:3.2GiB" chooses for each matrix, '
        'so that the bundle fits. "auto" is "lossless" where this machine decodes faster than it reads, else "as-is".',
    )
    experts: PartFormat = Field(default="auto", description='Those of experts; "auto" is what format says.')
    attention: PartFormat = Field(default="auto", description="Those of attention.")
    dense: PartFormat = Field(default="auto", description="Those of all other layers.")
    embeddings: PartFormat = Field(
        default="auto", description='Those of embeddings; "auto" is "as-is": a token takes only one row of them.'
    )
    output: PartFormat = Field(default="auto", description="Those of the output layer, also if embeddings share them.")
    quality: Literal["full", "adaptive", "base"] = Field(
        default="full",
        description='Of experts in several planes, "full" reads all; "base" the first alone, half as much; "adaptive" '
        "that, and the others while the drive has nothing else to do, those of the most important experts first.",
    )


class Experts(_Section):
    eviction: Literal["auto", "next-use", "lfu", "windowed-lfu", "succinct", "arc", "lru"] = Field(
        default="auto",
        description='Which expert leaves memory first: "next-use", probably not used for the longest time; "lfu" and '
        '"windowed-lfu", least often used; "lru", least recently; "arc" and "succinct" in between. "auto" is '
        '"next-use" while that hits more than "lru".',
    )
    prefetch: Literal["auto", "off"] = Field(
        default="auto",
        description='"auto" guesses the experts of the next layer while that saves time; "off" never does.',
    )
    misses: Literal["copy", "auto"] = Field(
        default="copy",
        description='Experts that are not in the memory of [compute] device: "copy" brings them there; "auto" has the '
        "CPU compute those of which it is sooner done, with its own rounding.",
    )
    products: Literal["each", "grouped"] = Field(
        default="each",
        description='On a CUDA device, "each" computes expert by expert, as transformers does; "grouped" those that '
        "are there in two launches, with sums in another order: other last bits.",
    )


class Kv(_Section):
    host: Size = Field(
        default="auto",
        description="Memory for the KV of all contexts, a part of [memory] host; what does not fit goes to flash. "
        '"auto" leaves KV to transformers, in memory and outside of the budget.',
    )
    device: Size = Field(
        default="auto",
        description="Memory of [compute] device for the newest pages, a part of [memory] device; the CPU looks at the "
        'others. "auto" is what the weights leave of [memory] device, where that is written.',
    )
    flash: Size = Field(
        default="auto", description='Most that KV may take on flash; "auto" is what the store\'s drive has free.'
    )
    format: Literal["as-is", "int8", "int4", "mixed"] = Field(
        default="as-is",
        description='How pages are kept, but for the first one and the last 128 tokens: "int8", "int4", or "mixed", '
        "those that get most attention in int8 and the others in int4.",
    )
    attention: Literal["exact", "certified", "window", "h2o", "snapkv", "quest"] = Field(
        default="exact",
        description='"exact" looks at all pages; "certified" at those that matter, until the others can have no more '
        'than epsilon of any softmax. The others promise nothing, and have a budget: "quest" looks at the pages that '
        'look best to each query; three drop pages for good, and keep the first, the recent, and of the rest: "window" '
        'nothing, "h2o" those that got most attention, "snapkv" those of a prompt that its last queries attend to.',
    )
    epsilon: Annotated[float, BeforeValidator(_share)] = Field(
        default=1e-3, description="Share of a softmax that certified attention may leave out."
    )
    summary: Literal["int8", "int4", "boxes"] = Field(
        default="int8",
        description="What certified attention keeps of each page's keys in memory: half of their bytes, a third, or "
        "next to nothing; the less, the more pages it reads.",
    )
    budget: Annotated[str, BeforeValidator(_budget)] = Field(
        default="auto",
        description='Tokens that "window", "h2o", "snapkv" and "quest" have for each layer, like 4096, or the share of '
        'the context, like "25%", which is "auto"; at least four pages of 64.',
    )
    layers: Literal["even", "by-need"] = Field(
        default="even",
        description='Whether "window", "h2o" and "snapkv" give all layers the same budget, or more to those whose '
        "attention to a prompt is spread out, of the same sum.",
    )
    prefix: Annotated[int | Literal["off"], BeforeValidator(_quota)] = Field(
        default="off",
        description="Most that prompts may take in the store: those that come again are kept there, with what was "
        'computed of them, and are not computed any more. "off" keeps none.',
    )
    namespace: str = Field(default="", description="Prompts are found again only under the name they were kept with.")


class Io(_Section):
    backend: Literal["auto", "io_uring", "threads", "buffered"] = Field(
        default="auto",
        description='"io_uring" and "threads" read past the page cache, "buffered" through it; "auto" is the fastest.',
    )
    depth: Count = Field(default="auto", description='Reads in flight at once; "auto" is the fewest that suffice.')


class Compute(_Section):
    device: Annotated[str, BeforeValidator(_device)] = Field(
        default="auto",
        description='Where is computed: "cpu", which is "auto", or "cuda:0" with weights in its memory, in that of the '
        'host and on flash. "emulated" has a part of host memory stand for a device\'s, to try that anywhere; '
        '"emulated:8GB" copies at most so much in a second.',
    )
    threads: Count = Field(
        default="auto",
        description='Threads that compute; "auto": as many as torch takes and may run at a time.',
    )
