"""Compares two outcomes, made of tensors, numbers, texts, lists and dictionaries."""

from collections.abc import Mapping
from typing import Any

import torch

from .choices import PerToken
from .closeness import Closeness
from .generated import Generated


def difference(found: Any, wanted: Any, closeness: Closeness, place: str = "it") -> str:
    """Where ``found`` differs from ``wanted``; empty where it does not."""
    if isinstance(wanted, Generated) and isinstance(found, Generated):
        return found.difference(wanted, closeness)
    if isinstance(wanted, PerToken) and isinstance(found, PerToken):
        return _per_token(found, wanted, closeness, place)
    if isinstance(wanted, torch.Tensor) and isinstance(found, torch.Tensor):
        return _of_tensors(found, wanted, closeness, place)
    if type(found) is not type(wanted):
        return f"{place} is {_short(found)}, not {_short(wanted)}"
    if isinstance(wanted, Mapping):
        if found.keys() != wanted.keys():
            return f"{place} has other keys: {sorted(map(str, found.keys() ^ wanted.keys()))[:4]}"
        return _first(difference(found[key], wanted[key], closeness, f"{place}[{key!r}]") for key in wanted)
    if isinstance(wanted, list | tuple):
        if len(found) != len(wanted):
            return f"{place} has {len(found)} parts, not {len(wanted)}"
        pairs = enumerate(zip(found, wanted, strict=True))
        return _first(difference(a, b, closeness, f"{place}[{number}]") for number, (a, b) in pairs)
    if isinstance(wanted, float):
        one, other = torch.tensor(found), torch.tensor(wanted)
        return "" if closeness.near(one, other) else f"{place} is {found}, not {wanted}"
    return "" if found == wanted else f"{place} is {_short(found)}, not {_short(wanted)}"


def _per_token(found: PerToken, wanted: PerToken, closeness: Closeness, place: str) -> str:
    """Where numbers may be rounded otherwise, so may be the choice between experts that are nearly equal."""
    whole = difference(found.parts, wanted.parts, closeness, place)
    if not whole or closeness is Closeness.BITS or not bool(wanted.close.any()):
        return whole
    return difference(found.decided(wanted.close), wanted.decided(wanted.close), closeness, place)


def _first(differences: Any) -> str:
    return next((each for each in differences if each), "")


def _of_tensors(found: torch.Tensor, wanted: torch.Tensor, closeness: Closeness, place: str) -> str:
    found, wanted = found.detach(), wanted.detach()
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return f"{place} is {found.dtype} {list(found.shape)}, not {wanted.dtype} {list(wanted.shape)}"
    if closeness.near(found, wanted):
        return ""
    if bool(found.isnan().any()) and not bool(wanted.isnan().any()):
        return f"{place} has NaN"
    away = (found.double() - wanted.double()).abs().nan_to_num().max()
    return f"{place} is off by {float(away):.3g} of {float(wanted.double().abs().nan_to_num().max()):.3g}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
