"""Rotary embeddings whose frequencies follow the length of the sequence: a token's key depends on what comes after."""

from typing import Any

from torch import nn


def find_bound(module: nn.Module) -> int | None:
    """The number of tokens from which on the keys of ``module``, a rotary embedding, depend on their number; None if
    they never do."""
    if not _find_kinds(module):
        return None
    bounds = [_find_original(getattr(getattr(module, "config", None), "rope_parameters", None))]
    bounds.append(getattr(module, "original_max_seq_len", None))
    return min((bound for bound in bounds if isinstance(bound, int)), default=0)


def is_volatile(module: nn.Module, name: str) -> bool:
    """Whether ``name`` is an attribute of ``module`` that its last forward has set for the length of its sequence."""
    kinds = _find_kinds(module)
    if not kinds or "original" in name:
        return False
    if name.endswith("max_seq_len_cached"):
        return True
    length: Any = module.max_seq_len_cached
    grown = "longrope" in kinds or length > (find_bound(module) or 0)
    return bool(grown) and (name.endswith("inv_freq") or name == "attention_scaling")


def _find_kinds(module: nn.Module) -> list[str]:
    """The kinds of rotary embeddings in ``module`` that follow the length."""
    kinds: Any = vars(module).get("rope_type")
    given = kinds.values() if isinstance(kinds, dict) else [kinds]
    return [kind for kind in given if isinstance(kind, str) and ("dynamic" in kind or kind == "longrope")]


def _find_original(parameters: Any) -> int | None:
    """The least original length in ``parameters``, of all kinds of layers."""
    if not isinstance(parameters, dict):
        return None
    found = [parameters.get("original_max_position_embeddings")]
    found += [_find_original(each) for each in parameters.values()]
    return min((each for each in found if isinstance(each, int)), default=None)
