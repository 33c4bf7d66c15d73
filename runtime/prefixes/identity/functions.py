"""Describes functions and classes by the library that their code comes from; code of anybody else cannot be described.

A name says little: ``functools.wraps`` copies it, and a library's decorator may hold a user's function. So the code
itself counts, and what it wraps. Functions of ours stand for what they wrap: they keep bits.
"""

import functools
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from .unknown import Undescribed

_OURS = "penstock"
_LIBRARIES = (sys.stdlib_module_names - {"__main__"}) | {"torch", "transformers", "peft", "huggingface_hub", _OURS}
"""Packages whose code the identity of a model names by its version."""
_KNOWN_KINDS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial, type)
_INSTALLED = ("site-packages", "dist-packages")
"""Folders of packages that were installed."""
_DEEPEST = 8

_described: WeakKeyDictionary[types.FunctionType, str] = WeakKeyDictionary()
_described_classes: dict[type, tuple[tuple[int, ...], str]] = {}


def is_library(module: str | None) -> bool:
    """Whether code of the Python module ``module`` is a library's."""
    return (module or "").partition(".")[0] in _LIBRARIES


def is_ours(module: str | None) -> bool:
    """Whether code of the Python module ``module`` is penstock's."""
    return (module or "").partition(".")[0] == _OURS


def name_library(module: str | None) -> str | None:
    """What names the code of the Python module ``module``: its name, for a library's; with the time and the size of
    its file, for another package that is installed; None for code of anybody else."""
    if module is None or is_library(module):
        return str(module)
    file = Path(getattr(sys.modules.get(module), "__file__", None) or "")
    if not any(folder in file.parts for folder in _INSTALLED):
        return None
    try:
        status = file.stat()
    except OSError:
        return None
    return f"{module}@{status.st_mtime_ns},{status.st_size}"


def is_function(value: object) -> bool:
    """Whether ``describe_function`` is meant for ``value``."""
    return isinstance(value, (*_KNOWN_KINDS, staticmethod, classmethod, property, functools.cached_property))


def describe_function(function: Any, *, owner: object = None, depth: int = 0) -> str:
    """Where the code of ``function``, or of the class ``function``, comes from, and of all that it wraps. A method of
    ``owner`` is described like the method of its class. Raises Undescribed."""
    if depth > _DEEPEST:
        raise Undescribed("a function in too many wrappers")
    deeper = functools.partial(describe_function, owner=owner, depth=depth + 1)
    function = peel(function)
    if isinstance(function, types.MethodType):
        of = "" if function.__self__ is owner else f" of {type(function.__self__).__qualname__}"
        if of and isinstance(function.__self__, nn.Module):
            raise Undescribed(f"a method of another module, {function.__qualname__}")
        return describe_function(function.__func__, depth=depth + 1) + of
    if isinstance(function, functools.partial):
        given = [*function.args, *function.keywords.values()]
        inside = [deeper(each) if is_function(each) else repr(each) for each in given if _is_plain(each)]
        if len(inside) < len(given):
            raise Undescribed(f"a partial of {deeper(function.func)}")
        return f"{deeper(function.func)}({', '.join([*inside, *function.keywords])})"
    if isinstance(function, staticmethod | classmethod):
        return deeper(function.__func__)
    if isinstance(function, property):
        return "/".join(deeper(each) for each in (function.fget, function.fset, function.fdel) if each is not None)
    if isinstance(function, functools.cached_property):
        return deeper(function.func)
    if isinstance(function, types.FunctionType):
        return _describe_code(function, deeper, keep=owner is None)
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", type(function).__qualname__)
    if (library := name_library(module)) is None:
        raise Undescribed(f"{module}.{name}")
    return f"{library}:{name}"


def describe_class(kind: type) -> str:
    """Where the code of all methods of ``kind`` and its bases comes from. Raises Undescribed."""
    methods = [*_find_methods(kind)]
    seen = tuple(id(method) for _, method in methods)
    known = _described_classes.get(kind)
    if known is None or known[0] != seen:
        text = " ".join(f"{name}={describe_function(method)}" for name, method in methods)
        known = _described_classes[kind] = seen, text
    return known[1]


def _find_methods(kind: type) -> Iterator[tuple[str, Any]]:
    for base in kind.__mro__[:-1]:
        yield from ((f"{base.__qualname__}.{name}", each) for name, each in vars(base).items() if is_function(each))


def _describe_code(function: types.FunctionType, deeper: Callable[[Any], str], *, keep: bool) -> str:
    if keep and function in _described:
        return _described[function]
    module = str(function.__globals__.get("__name__"))
    if (library := name_library(module)) is None:
        raise Undescribed(f"{module}.{function.__qualname__}")
    text = f"{library}:{function.__code__.co_qualname}"
    if not is_ours(module):
        text += "".join(f"<{deeper(each)}>" for each in _find_wrapped(function))
    if keep:
        _described[function] = text
    return text


def _find_wrapped(function: types.FunctionType) -> Iterator[Any]:
    """What a decorator's function wraps, and other functions that it holds."""
    wrapped = getattr(function, "__wrapped__", None)
    if wrapped is not None:
        yield wrapped
    for cell in function.__closure__ or ():
        try:
            inside = cell.cell_contents
        except ValueError:  # nothing yet
            continue
        if inside is not wrapped and inside is not function and isinstance(inside, _KNOWN_KINDS[:-1]):
            yield inside


def peel(function: Any) -> Any:
    """``function`` without what penstock has put around it."""
    while isinstance(function, types.FunctionType) and is_ours(function.__globals__.get("__name__")):
        inner = getattr(function, "__wrapped__", None)
        if inner is None:
            cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
            inner = cells["original"].cell_contents if "original" in cells else None
        if inner is None:
            break
        function = inner
    return function


def _is_plain(value: object) -> bool:
    return is_function(value) or isinstance(value, str | int | float | bool | type(None))
