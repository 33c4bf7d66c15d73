"""Leave out what torch and transformers import and no command uses: the compiler, distributed tensors, accelerate.

They take longer to import than all the rest. A command owns its process, so it may choose; the library leaves imports
as they are. What is used after all is imported then.
"""

import functools
import gc
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

from .deferred import Deferred, defer, is_deferred, load, when_loaded

_UNUSED = ("is_torch_distributed_available", "is_accelerate_available")
"""How transformers asks for packages that it then imports."""
_MODELS = "transformers.models"
_LISTED = ("_class_to_module", "_modules", "_import_structure", "_object_missing_backend")
"""The table that transformers keeps of the names in its modules."""
_process = {"ours": False}


def own_process() -> None:
    """Say that the process is there for one command, which may choose what is imported, and how."""
    _process["ours"] = True


@contextmanager
def uncollected() -> Iterator[None]:
    """Import without the garbage collector, which would look through all classes and functions again and again. What is
    there afterwards stays there, and is not looked through any more."""
    if not _process["ours"] or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def import_less() -> None:
    """Have transformers import as little as commands need from now on, where the process is ours. Idempotent; nothing
    is done where it has imported models already."""
    if not _process["ours"] or "transformers.modeling_utils" in sys.modules:
        return
    import transformers.utils
    from transformers.utils import import_utils

    for module in (import_utils, transformers.utils):
        for name in _UNUSED:
            setattr(module, name, _is_not_there)
    marks = {name: functools.partial(_mark, name) for name in ("assume_constant_result", "allow_in_graph")}
    defer("torch._dynamo", {"disable": _disable, **marks}, apart=["_trace_wrapped_higher_order_op"])
    plain = {name: functools.partial(_of_plain, name, answer) for name, answer in _SHAPES.items()}
    defer("torch.fx.experimental.symbolic_shapes", plain)
    defer("sympy", {"Basic": _no_class})
    _list_models_once(transformers, import_utils._LazyModule)


def _is_not_there(*_: Any, **__: Any) -> bool:
    return False


def _mark(how: str, compiler: Deferred) -> Any:
    """Stands for a decorator of the compiler that notes something about a function, and returns it."""

    def mark(function: Any) -> Any:
        if isinstance(function, FunctionType):
            when_loaded(compiler, lambda: getattr(compiler, how)(function))
            return function
        load(compiler)
        return getattr(compiler, how)(function)

    return mark


def _disable(compiler: Deferred) -> Any:
    """Stands for the compiler's decorator of functions that are not compiled: nothing is, until it is imported."""

    def disable(function: Any = None, *rest: Any, **more: Any) -> Any:
        if function is None:
            return lambda each: disable(each, *rest, **more)
        if not isinstance(function, FunctionType):
            load(compiler)
            return compiler.disable(function, *rest, **more)

        @functools.cache
        def disabled() -> Any:
            return compiler.disable(function, *rest, **more)

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            return (function if is_deferred(compiler) else disabled())(*args, **kwargs)

        return run

    return disable


def _no_class(_: Deferred) -> type:
    """Stands for the class of all expressions, of which there are none yet."""
    return _Nothing


class _Nothing:
    """Nothing is an instance of it."""


def _of_plain(name: str, answer: Callable[..., bool | None], shapes: Deferred) -> Any:
    """Stands for the function ``name`` of symbolic shapes; ``answer`` is what it says, None where shapes are not plain
    numbers."""

    def function(*args: Any, **more: Any) -> Any:
        found = None if more else answer(*args)
        if found is not None:
            return found
        load(shapes)
        return getattr(shapes, name)(*args, **more)

    return function


def _itself(condition: object) -> bool | None:
    return condition if type(condition) is bool else None


def _expected(condition: object, skip: int = 0) -> bool | None:
    return _itself(condition)


def _all(*conditions: object) -> bool | None:
    return all(conditions) if all(type(each) is bool for each in conditions) else None


def _any(*conditions: object) -> bool | None:
    return any(conditions) if all(type(each) is bool for each in conditions) else None


def _equal(one: object, other: object) -> bool | None:
    return one == other if _is_plain(one) and type(one) is type(other) and _is_plain(other) else None


def _is_plain(shape: object) -> bool:
    return type(shape) is int or (type(shape) is tuple and all(type(each) is int for each in shape))


def _not_nested(length: object) -> bool | None:
    return False if type(length) is int else None


def _unknown(*_: object) -> None:
    return None


_SHAPES: Mapping[str, Callable[..., bool | None]] = {
    "expect_true": _expected,
    "guard_or_false": _itself,
    "guard_or_true": _itself,
    "guard_size_oblivious": _itself,
    "statically_known_true": _itself,
    "sym_and": _all,
    "sym_or": _any,
    "sym_eq": _equal,
    "is_nested_int": _not_nested,
    "has_guarding_hint": _unknown,
    "guarding_hint_or_throw": _unknown,
}
"""Functions that torch calls with every shape on the meta device, and what they say of plain numbers. Of symbolic ones
they need an algebra system to say it."""


def _list_models_once(transformers: ModuleType, lazy_module: Any) -> None:
    """Make ``transformers.models`` of what ``transformers`` has listed of it: importing it would read all its 1,700
    files again."""
    spec = importlib.util.find_spec(_MODELS)
    known = {*_LISTED} <= vars(transformers).keys() and isinstance(transformers, lazy_module)
    if _MODELS in sys.modules or spec is None or spec.origin is None or not known:
        return
    prefix = "models."
    places = {name: place for name, place in transformers._class_to_module.items() if place.startswith(prefix)}
    models = lazy_module(_MODELS, spec.origin, {frozenset(): {}}, module_spec=spec)
    models._class_to_module = {name: place.removeprefix(prefix) for name, place in places.items()}
    models._modules = {name.removeprefix(prefix) for name in transformers._modules if name.startswith(prefix)}
    models._import_structure = {
        place.removeprefix(prefix): names
        for place, names in transformers._import_structure.items()
        if place.startswith(prefix)
    }
    models._object_missing_backend = {
        name.removeprefix(prefix): missing
        for name, missing in transformers._object_missing_backend.items()
        if name in places or name.startswith(prefix)
    }
    models.__all__ = [*models._modules, *models._class_to_module]
    sys.modules[_MODELS] = models
