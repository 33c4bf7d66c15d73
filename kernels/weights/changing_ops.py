"""Finds the tensors that a function of torch changes, by its name and arguments."""

from typing import Any

_OPERATORS = ("add", "sub", "mul", "div", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")
_CHANGING = {f"__i{name}__" for name in _OPERATORS} | {"__setitem__"}


def changed(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """Those of the arguments that ``func``, as ``__torch_function__`` receives it, changes, as it tells by its name or
    by ``out`` and ``inplace``."""
    name = getattr(func, "__name__", "")
    in_place = name in _CHANGING or (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace")
    # torch.nn.init gives all arguments by name.
    first = [args[0] if args else next(iter(kwargs.values()))] if in_place else []
    return [*first, kwargs["out"]] if kwargs.get("out") is not None else first
