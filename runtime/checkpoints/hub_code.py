"""Code that a configuration names and transformers would fetch from the hub and run: kernels. Only if it is trusted."""

from collections.abc import Iterator
from typing import Any

from transformers import PretrainedConfig
from transformers.utils import is_kernels_available

from ...tiering.errors import CheckpointError

_FETCHED_EXPERTS = ("deepgemm", "sonicmoe")


def refuse_hub_code(config: PretrainedConfig) -> None:
    """Raise CheckpointError if building or computing what ``config`` describes would run a kernel from the hub."""
    for key, name in _chosen(config):
        if _is_fetched(name):
            raise CheckpointError(
                f"config.json asks for {key} {name!r}, which is code from the Hugging Face hub; pass "
                f"trust_remote_code=True to run it, or take {key} out of config.json"
            )


def _chosen(config: PretrainedConfig) -> Iterator[tuple[str, str]]:
    """The implementations that ``config`` and those inside it choose."""
    waiting: list[Any] = [config]
    seen: set[int] = set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        for key, value in vars(part).items():
            if key.endswith(("attn_implementation", "attn_implementation_internal")):
                yield from (("attn_implementation", name) for name in _names(value))
            elif key.endswith(("experts_implementation", "experts_implementation_internal")):
                yield from (("experts_implementation", name) for name in _names(value))
            elif isinstance(value, PretrainedConfig):
                waiting.append(value)


def _names(value: Any) -> Iterator[str]:
    for each in value.values() if isinstance(value, dict) else [value]:
        if isinstance(each, str):
            yield each


def _is_fetched(name: str) -> bool:
    # Where flash attention is not installed, transformers takes a kernel from the hub for it.
    return "/" in name or (is_kernels_available() and (name.startswith("flash_attention") or name in _FETCHED_EXPERTS))
