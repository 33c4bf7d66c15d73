"""Rotary positions of one token in one call, inside of the forward of an attention module.

Transformers' attention calls a function of its own file for them. No code per architecture: the function is found in
the code of the forward, and a trial shows whether it computes what our kernel does. Nothing of transformers is changed:
the module gets the code of its class's forward with other global names, and only as long as the names that it and the
function use mean what they meant.
"""

import dis
import functools
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import nn

from ...kernels.modules.rotary import Rotary, find_rotary, is_rotated
from ...kernels.native import KERNELS
from ...kernels.process.interrupts import calls_others
from ...kernels.products.autocast import autocasts
from .chunks import is_library_code
from .plainly import nobody_watches

ModuleForward = Callable[..., Any]

_FOUND: dict[tuple[FunctionType, tuple[int, int], int], Rotary | None] = {}
"""By function, numbers of heads and dimension."""


def _operations() -> tuple[object, ...]:
    """The operations that such functions are made of, as they are now."""
    kind = torch.Tensor
    return torch.cat, kind.unsqueeze, kind.__mul__, kind.__add__, kind.__neg__, kind.__getitem__, kind.chunk


_TORCHS = _operations()


class _Name(NamedTuple):
    """What a global name meant."""

    scope: dict[str, Any]
    name: str
    value: object
    code: object

    def means_the_same(self) -> bool:
        """Return whether nobody has set the name, or changed the function that it names."""
        return self.scope.get(self.name) is self.value and _code_of(self.value) == self.code


def _code_of(function: object) -> object:
    """What makes a function of Python compute what it does; None of all else."""
    return (function.__code__, function.__defaults__) if type(function) is FunctionType else None


def rotary(module: nn.Module, original: ModuleForward) -> ModuleForward | None:
    """A forward for ``module``, an attention, which rotates queries and keys of one token in one call, and is
    ``original`` where something was changed. Returns None where it calls no such function."""
    tried: Any = type(module).forward
    if KERNELS is None or "forward" in vars(module) or not is_library_code(module) or not _is_librarys(tried):
        return None
    names = _names_of(tried)
    functions = [name for name in names or () if "rotary" in name.name and _is_librarys(name.value)]
    if names is None or len(functions) != 1:
        return None
    own: Any = functions[0].value
    inner = _names_of(own, deep=True)
    if inner is None or not all(_is_librarys(name.value) for name in inner if _is_called(name.value)):
        return None
    watched = [*names, *inner]
    changed = {**tried.__globals__, functions[0].name: _in_one_call(own)}
    ours: Any = FunctionType(tried.__code__, changed, tried.__name__, tried.__defaults__, tried.__closure__)
    ours.__kwdefaults__, code = tried.__kwdefaults__, _code_of(tried)

    @functools.wraps(original)
    @calls_others
    def forward(*args: Any, **kwargs: Any) -> Any:
        if type(module).forward is not tried or _code_of(tried) != code:
            return original(*args, **kwargs)
        if not all(name.means_the_same() for name in watched):
            return original(*args, **kwargs)
        return ours(module, *args, **kwargs)

    return forward


def _is_librarys(value: object) -> bool:
    """Whether ``value`` is a function from a file of transformers. A wrapper may bear the name of what it wraps."""
    return type(value) is FunctionType and str(value.__globals__.get("__name__")).startswith("transformers.")


def _is_called(value: object) -> bool:
    return callable(value) and not isinstance(value, type)


def _names_of(function: FunctionType, *, deep: bool = False) -> list[_Name] | None:
    """The global names that ``function`` reads; ``deep``: also those that functions read which it names. None if it
    sets one, or may read others."""
    found: dict[tuple[int, str], _Name] = {}
    left, seen = [function], set()
    while left:
        now = left.pop()
        if now in seen:
            continue
        seen.add(now)
        if any(type(each) is CodeType for each in now.__code__.co_consts):
            return None
        for step in dis.get_instructions(now.__code__):
            if step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                return None
            if step.opname == "LOAD_GLOBAL":
                value = now.__globals__.get(step.argval)
                found[id(now.__globals__), step.argval] = _Name(now.__globals__, step.argval, value, _code_of(value))
                left += [value] if deep and type(value) is FunctionType else []
    return [*found.values()]


def _in_one_call(own: FunctionType) -> Callable[..., Any]:
    """``own``, in one call where that has its bits."""

    @functools.wraps(own)
    @calls_others
    def rotate(*args: Any, **kwargs: Any) -> Any:
        if len(args) != 4 or kwargs or not _are_plain(args) or not is_rotated(*args):
            return own(*args, **kwargs)
        key = own, (args[0].shape[1], args[1].shape[1]), args[0].shape[3]
        if key not in _FOUND:
            _FOUND[key] = find_rotary(*key)
        found = _FOUND[key]
        return own(*args) if found is None else found(*args)

    return rotate


def _are_plain(tensors: tuple[Any, ...]) -> bool:
    """Whether torch's own operations compute with ``tensors``, without gradients."""
    if not all(type(each) is torch.Tensor for each in tensors) or autocasts():
        return False
    if not nobody_watches() or _operations() != _TORCHS:
        return False
    return not (torch.is_grad_enabled() and any(each.requires_grad for each in tensors))
