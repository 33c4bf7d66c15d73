"""The sections of the configuration: their keys, defaults and descriptions.

A description is written here once. ``penstock config`` prints it as a comment, ``--help`` its first sentence, and the
reference all of it (described.py).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .values import BudgetSetting, Count, DeviceSetting, Folder, Folders, FormatSetting, PartFormat, Quota, Share, Size

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


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


def _key(default: Any, description: str, example: object) -> Any:
    """A key with its default, its description and a value as an example. The first sentence stands for itself."""
    return Field(default=default, description=description, examples=[example])


class MemorySettings(_Section):
    """Budgets of memory and flash."""

    host: Size = _key(
        "auto",
        "Most memory for weights, and for keys and values where [kv] host is set. "
        '"auto" fits the machine, with headroom.',
        "2GiB",
    )
    floor: Size = _key(
        "auto",
        "The part of host that is kept when the machine runs short of memory. The rest comes back when there is "
        'enough again. "auto" is the least with which the model runs. The value of host switches shrinking off.',
        "1GiB",
    )
    device: Size = _key(
        "auto",
        'Most memory of [compute] device, for weights and for [kv] device. "auto" is seven eighths of the free device '
        'memory, as far as there is use for it. "emulated" needs a size.',
        "6GiB",
    )
    flash: Size = _key(
        "auto",
        'Most that all bundles in the store may take together. "auto" is the free space of the drive.',
        "100GiB",
    )


class Store(_Section):
    """Where packed models and stored prompts lie."""

    path: Folder = Field(
        default_factory=lambda: Path("~/.cache/penstock").expanduser(),
        description="Folder of the packed models. Put it on the fastest drive.",
        examples=["/mnt/a/penstock"],
    )
    stripes: Folders = _key(
        (),
        "Folders on further drives. Packing deals the blocks of a model to all of them by measured speed.",
        ["/mnt/b/penstock"],
    )


class Weights(_Section):
    """How weights are stored."""

    format: FormatSetting = _key(
        "auto",
        'How weights are stored. "auto" is "as-is" or "lossless", which keep every bit: that of a bundle that is '
        "there, else the one that is faster for this model, in this memory, on this machine. "
        '"int8" and "int4" are smaller, "int4-64" and "int4-128" have larger groups. '
        '"nested" has the numbers of "int8", and those of experts in two planes. '
        '"stacked" has three planes. The first plane alone can be computed with: see quality. "fit:3.2GiB" chooses a '
        "format for each matrix, so that the bundle has that size.",
        "int8",
    )
    experts: PartFormat = _key("auto", 'Format of experts. "auto" is what format says.', "int4")
    attention: PartFormat = _key("auto", 'Format of attention. "auto" is what format says.', "int8")
    dense: PartFormat = _key("auto", 'Format of all other layers. "auto" is what format says.', "int8")
    embeddings: PartFormat = _key(
        "auto", 'Format of embeddings. "auto" is "as-is", because a token reads only one row of them.', "int8"
    )
    output: PartFormat = _key(
        "auto", 'Format of the output layer, also if embeddings share it. "auto" is what format says.', "as-is"
    )
    quality: Literal["full", "adaptive", "base"] = _key(
        "full",
        'How many planes of experts are read, where they have several. "full" reads all. "base" reads the first alone, '
        'about half of the bytes. "adaptive" reads the first, and the others while the drive has nothing else to do, '
        "those of the most important experts first.",
        "adaptive",
    )


class Experts(_Section):
    """Which experts are in memory."""

    eviction: Literal["auto", "next-use", "lfu", "windowed-lfu", "succinct", "arc", "lru"] = _key(
        "auto",
        'Which expert leaves memory first. "next-use": the one probably not used for the longest time. "lfu" and '
        '"windowed-lfu": the least often used. "lru": the least recently used. "arc" and "succinct" lie in between. '
        '"auto" is "next-use" while that hits more than "lru".',
        "lfu",
    )
    prefetch: Literal["auto", "off"] = _key(
        "auto",
        'Whether the experts of the next layer are guessed. "auto" guesses while that saves time, "off" never does.',
        "off",
    )
    misses: Literal["copy", "auto"] = _key(
        "copy",
        "What happens to experts that are not in the memory of [compute] device. "
        '"copy" copies them there. "auto" has the CPU compute those that it finishes sooner, with its own rounding.',
        "auto",
    )
    products: Literal["each", "grouped"] = _key(
        "each",
        'How a CUDA device computes experts. "each" computes one by one, as transformers does. "grouped" computes '
        "those on the device in two launches, with sums in another order and so other last bits.",
        "grouped",
    )


class Kv(_Section):
    """Keys and values of attention, and stored prompts."""

    host: Size = _key(
        "auto",
        "Memory for the keys and values of all contexts, a part of [memory] host. The rest of them goes to flash. "
        '"auto" leaves them to transformers, in memory and outside of the budget. A warning says when they and the '
        "weights pass [memory] host.",
        "1GiB",
    )
    device: Size = _key(
        "auto",
        "Memory of [compute] device for the newest pages, a part of [memory] device. The CPU attends to the others. "
        '"auto" is what the weights leave of a [memory] device that is written out.',
        "512MiB",
    )
    flash: Size = _key(
        "auto",
        'Most that keys and values may take on flash. "auto" is the free space of the store\'s drive.',
        "50GiB",
    )
    format: Literal["as-is", "int8", "int4", "mixed"] = _key(
        "as-is",
        "Format of older pages of keys and values. The first page and the last 128 tokens stay as they are. "
        '"mixed" keeps the pages with most attention in int8 and the others in int4.',
        "int8",
    )
    attention: Literal["exact", "certified", "window", "h2o", "snapkv", "quest"] = _key(
        "exact",
        'Which pages attention reads. "exact" reads all. "certified" reads pages until the others can have no more '
        "than epsilon of any softmax. The other modes have a budget and promise nothing about the rest. "
        '"quest" reads the pages that look best to each query. Three drop pages for good and keep the first, the '
        'recent, and some of the rest: "window" none, "h2o" those with most attention so far, "snapkv" those of a '
        "prompt that its last queries attend to.",
        "certified",
    )
    epsilon: Share = _key(1e-3, "Share of a softmax that certified attention may leave out.", 1e-2)
    summary: Literal["int8", "int4", "boxes"] = _key(
        "int8",
        'Summary of keys that certified attention keeps in memory. "int8" takes half of the bytes of the keys, '
        '"int4" a third, "boxes" next to nothing. With a smaller summary it reads more pages.',
        "int4",
    )
    budget: BudgetSetting = _key(
        "auto",
        'Budget of each layer for "window", "h2o", "snapkv" and "quest", in tokens or as a share of the context. '
        '"auto" is "25%". The least is four pages of 64.',
        "4096",
    )
    layers: Literal["even", "by-need"] = _key(
        "even",
        'How "window", "h2o" and "snapkv" divide the budget over the layers. "even" gives all the same. "by-need" '
        "gives more to layers whose attention to a prompt is spread out, with the same sum.",
        "by-need",
    )
    prefix: Quota = _key(
        "off",
        "Most that stored prompts may take in the store. Prompts that come again are kept there and are not computed "
        'again. "off" keeps none.',
        "10GiB",
    )
    namespace: str = _key("", "Name under which prompts are stored. They are found only under the same name.", "user-1")


class Io(_Section):
    """How drives are read."""

    backend: Literal["auto", "io_uring", "threads", "buffered"] = _key(
        "auto",
        'How drives are read. "io_uring" and "threads" read past the page cache, "buffered" through it. "auto" is the '
        "fastest.",
        "threads",
    )
    depth: Count = _key("auto", 'Reads in flight at once on each drive. "auto" is the fewest that keep it busy.', 4)


class Compute(_Section):
    """What computes."""

    device: DeviceSetting = _key(
        "auto",
        'Where the model computes. "auto" is "cpu". "cuda:0" keeps weights in its memory, in that of the host and on '
        'flash. "emulated" lets a part of host memory stand for a device\'s, to try that anywhere. "emulated:8GB" '
        "copies at most that much in a second.",
        "cuda:0",
    )
    threads: Count = _key(
        "auto",
        'Threads that compute. "auto" is as many as torch takes, but no more than the machine or a quota lets run.',
        4,
    )
