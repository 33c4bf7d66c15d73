"""Weights as everybody sees them outside of their module's own forward: tensors whose numbers lie elsewhere.

There is one such tensor for each weight, of a lasting identity. It answers questions about dtype, device and shape by
itself. Every other function of torch computes on the numbers, which are fetched for it and given back when it is done.
A view on them is again such a tensor, so that nobody keeps memory that will hold other numbers later. A function that
changes a weight changes a copy, which stays in memory.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from ...kernels.process.interrupts import calls_others
from ...kernels.weights.changing_ops import changed
from ...kernels.weights.metadata_ops import ARRAYS
from ...kernels.weights.packed_weight import PRODUCTS, PackedWeight
from ...tiering.errors import PenstockError
from .gradients import REASON, without_gradients
from .views import parameter
from .weight_functions import ANSWERED, REFUSED, rows_of, written

Function = Callable[..., Any]


class Numbers(Protocol):
    """The place of a weight's numbers."""

    name: str
    """Of the weight, for errors."""

    def leased(self, rows: torch.Tensor | None) -> AbstractContextManager[torch.Tensor]:
        """The numbers, in memory while the context lasts; of only these ``rows`` if that saves work."""

    def present(self) -> torch.Tensor | None:
        """The numbers, if they lie in memory of their own, where they stay."""

    def own(self) -> None:
        """Give the numbers memory of their own, where they may be changed. Raises BudgetTooSmall."""

    def replace(self, numbers: torch.Tensor) -> None:
        """Take ``numbers``, of any shape, in place of these. Raises BudgetTooSmall and PenstockError."""

    def note_gradients(self) -> None:
        """The weight was told whether it requires gradients, on which bits depend."""


class StreamedWeight(torch.Tensor):
    """A weight whose ``numbers`` are fetched when they are computed on."""

    numbers: Numbers
    _is_param: bool
    """Whether it counts as a module's parameter: torch's name for it."""

    @staticmethod
    def __new__(
        cls,
        numbers: Numbers,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        *,
        strides: tuple[int, ...] | None = None,
        requires_grad: bool = False,
        is_parameter: bool = False,
    ) -> "StreamedWeight":
        made: StreamedWeight = torch.Tensor._make_wrapper_subclass(
            cls, shape, strides=strides, dtype=dtype, device=device, requires_grad=requires_grad
        )
        torch._C._set_throw_on_mutable_data_ptr(made)  # it has no memory for C code that goes past all functions
        made.numbers, made._is_param = numbers, is_parameter
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    @property
    def wants_gradients(self) -> bool:
        """``requires_grad``, as modules compute with it."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.requires_grad

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in ANSWERED:
            return _answer(func, args, kwargs)
        if func in _SPECIAL:
            return _SPECIAL[func](*args, **kwargs)
        return _run(func, args, kwargs, changed(func, args, kwargs))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        # Some functions of torch cannot be replaced by a class. They come here.
        kwargs = kwargs or {}
        return _run(func, args, kwargs, written(func, args, kwargs))


class _View:
    """The numbers at ``place`` among the results of ``func``: a view on those of the weights among its arguments."""

    def __init__(self, func: Function, args: Any, kwargs: Any, place: int) -> None:
        self.func, self._args, self._kwargs, self._place = func, args, kwargs, place
        self.weights = _weights_in((args, kwargs))
        self.name = self.weights[0].numbers.name

    @contextmanager
    def leased(self, rows: torch.Tensor | None) -> Iterator[torch.Tensor]:
        """See Numbers."""
        with _computed(self.func, self._args, self._kwargs) as (out, _):
            yield tree_flatten(out)[0][self._place]

    def present(self) -> torch.Tensor | None:
        """See Numbers."""
        if any(weight.numbers.present() is None for weight in self.weights):
            return None
        with self.leased(None) as numbers:
            return numbers

    def own(self) -> None:
        """See Numbers."""
        for weight in self.weights:
            weight.numbers.own()

    def replace(self, numbers: torch.Tensor) -> None:
        """See Numbers."""
        raise PenstockError(f"this is a view on {self.name}; give the data to the weight itself")

    def note_gradients(self) -> None:
        """See Numbers."""


class _Use:
    """The ``numbers`` of ``weight`` in memory, while a function computes on them."""

    def __init__(self, weight: StreamedWeight, numbers: torch.Tensor, *, lasting: bool) -> None:
        """``lasting``: they lie in memory of their own."""
        self.weight, self.numbers, self.lasting = weight, numbers, lasting
        packed = isinstance(numbers, PackedWeight)
        self.storage = 0 if packed else numbers.untyped_storage().data_ptr()
        self._version = None if packed or numbers.is_inference() else numbers._version

    def was_changed(self) -> bool:
        """Whether the function has changed them, although they do not stay."""
        return not self.lasting and self._version is not None and self.numbers._version != self._version


def _answer(func: Function, args: Any, kwargs: Any) -> Any:
    """``func`` of metadata."""
    weight = args[0] if args else next(iter(kwargs.values()))
    present = weight.numbers.present() if isinstance(weight, StreamedWeight) else None
    if present is not None and args:
        return func(present, *args[1:], **kwargs)
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)


def _run(func: Function, args: Any, kwargs: Any, changing: list[Any]) -> Any:
    """``func``, which changes the weights among ``changing``, of the numbers."""
    for weight in _weights_in(changing):
        weight.numbers.own()
    inputs = [leaf for leaf in tree_flatten((args, kwargs))[0] if _is_plain(leaf)]
    tracked = torch.is_grad_enabled()
    with _computed(func, args, kwargs) as (out, used):
        if func in ARRAYS and not all(use.lasting for use in used):
            out.setflags(write=False)  # what is written to a copy would be lost
        results, form = tree_flatten(out)
        if tracked and any(leaf.requires_grad and leaf is result for leaf in inputs for result in results):
            raise PenstockError(REASON)  # it would lose those that it had
        wants = tracked and any(use.weight.wants_gradients for use in used)
        found = [_outside(leaf, used, wants, func, args, kwargs, place) for place, leaf in enumerate(results)]
        for use in used:
            if use.was_changed():  # without telling by its name: what it wrote is copied from where it lies
                use.weight.numbers.own()
    return without_gradients(tree_unflatten(found, form), inputs, lambda: wants)


@contextmanager
@calls_others
def _computed(func: Function, args: Any, kwargs: Any) -> Iterator[tuple[Any, list[_Use]]]:
    """``func`` of the numbers of all weights among its arguments, which are there while the context lasts."""
    used: list[_Use] = []
    with ExitStack() as leases:
        leases.enter_context(forgetting())

        def fetch(weight: StreamedWeight) -> Any:
            numbers = weight.numbers.present()
            lasting = numbers is not None
            if numbers is None:
                numbers = leases.enter_context(weight.numbers.leased(rows_of(func, args, weight)))
                if isinstance(numbers, PackedWeight) and func not in PRODUCTS:
                    numbers = numbers.decoded()
                if weight._is_param:
                    numbers = parameter(numbers, weight.wants_gradients)
                elif weight.wants_gradients:  # on which bits depend
                    numbers = numbers.detach().requires_grad_()
            if func in ARRAYS and not lasting:
                numbers = numbers.detach().clone()
            used.append(_Use(weight, numbers, lasting=lasting))
            return numbers

        real_args, real_kwargs = tree_map_only(StreamedWeight, fetch, (tuple(args), dict(kwargs)))
        yield func(*real_args, **real_kwargs), used


def _outside(leaf: Any, used: list[_Use], wants_gradients: bool, *recipe: Any) -> Any:
    """A result ``leaf`` as it may leave: without memory of weights that do not stay. ``recipe`` is that of a view."""
    if not _is_plain(leaf):
        return leaf
    for use in used:
        if leaf is use.numbers:
            return leaf if use.lasting else use.weight
    storage = leaf.untyped_storage().data_ptr()
    if not storage or all(use.lasting or storage != use.storage for use in used):
        return leaf
    requires_grad = wants_gradients and leaf.is_floating_point()
    shape, strides = tuple(leaf.shape), leaf.stride()
    return StreamedWeight(_View(*recipe), shape, leaf.dtype, leaf.device, strides=strides, requires_grad=requires_grad)


def wants_gradients(module: nn.Module) -> bool:
    """Whether a parameter of ``module``, streamed or not, requires gradients."""
    with torch._C.DisableTorchFunctionSubclass():
        return any(parameter.requires_grad for parameter in module.parameters())


def _is_plain(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and not isinstance(leaf, StreamedWeight | PackedWeight)


def _weights_in(tree: Any) -> list[StreamedWeight]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, StreamedWeight)]


@contextmanager
def forgetting() -> Iterator[None]:
    """In here torch remembers no weight: neither for gradients nor, cast to another dtype, for autocast."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)


def _detach(weight: StreamedWeight) -> torch.Tensor:
    """``weight.detach()``, for which no numbers are needed."""
    present = weight.numbers.present()
    if present is not None:
        return present.detach()
    numbers = _View(torch.Tensor.detach, (weight,), {}, 0)
    return StreamedWeight(numbers, tuple(weight.shape), weight.dtype, weight.device, strides=weight.stride())


def _to(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """``tensor.to(...)``: a weight that has the device and the dtype already is itself, and nothing is read."""
    if args and isinstance(args[0], StreamedWeight):  # whose numbers nobody wants
        args = (args[0].device, args[0].dtype, *args[1:])
    if isinstance(tensor, StreamedWeight) and _stays(tensor, args, kwargs):
        return tensor
    return _run(torch.Tensor.to, (tensor, *args), kwargs, [])


def _stays(weight: StreamedWeight, args: Any, kwargs: Any) -> bool:
    """Whether ``weight.to(*args, **kwargs)`` is the weight itself, which is not in memory."""
    if weight.numbers.present() is not None or kwargs.get("copy"):
        return False
    try:
        wanted: tuple[Any, ...] = torch._C._nn._parse_to(*args, **kwargs)
    except (RuntimeError, TypeError):  # it copies, or torch says what is wrong
        return False
    device, dtype, _, memory_format = wanted
    return device in (None, weight.device) and dtype in (None, weight.dtype) and memory_format is None


def _compatible(tensor: torch.Tensor, other: torch.Tensor) -> Any:
    """Whether ``other`` can be the data of ``tensor``, as ``nn.Module.to`` asks."""
    return tensor is other or _run(_COMPATIBLE, (tensor, other), {}, [])


def _set_data(weight: torch.Tensor, data: torch.Tensor) -> None:
    """``weight.data = data``."""
    if isinstance(data, StreamedWeight):
        numbers = data.numbers
        if data is weight or (isinstance(numbers, _View) and numbers.func is _DETACH and numbers.weights[0] is weight):
            return
        present = numbers.present()
        data = data.clone() if present is None else present
    if isinstance(weight, StreamedWeight):
        weight.numbers.replace(data)
    else:
        weight.data = data


def _set(weight: torch.Tensor, source: Any = None, *others: Any) -> torch.Tensor:
    """``weight.set_(source)``."""
    if isinstance(source, torch.Tensor) and not others:
        _set_data(weight, source)
        return weight
    return _refuse(weight)  # type: ignore[no-any-return, arg-type]


def _set_gradients(weight: StreamedWeight, requires_grad: bool = True) -> StreamedWeight:
    present = weight.numbers.present()
    if present is not None:
        present.requires_grad_(requires_grad)
    with torch._C.DisableTorchFunctionSubclass():
        torch.Tensor.requires_grad_(weight, requires_grad)
    weight.numbers.note_gradients()
    return weight


def _set_gradient(weight: StreamedWeight, grad: torch.Tensor | None) -> None:
    if grad is not None:
        _refuse(weight)


def copied(weight: StreamedWeight) -> Any:
    """A copy of ``weight`` in memory of its own, a parameter if ``weight`` is one."""
    with torch.inference_mode(False):
        copy = weight.detach().clone()
    return nn.Parameter(copy, weight.wants_gradients) if weight._is_param else copy


def _deep_copy(weight: StreamedWeight, memo: dict[int, Any]) -> Any:
    return memo.setdefault(id(weight), copied(weight)) if id(weight) not in memo else memo[id(weight)]


def _refuse(weight: StreamedWeight, *_: Any, **__: Any) -> Any:
    raise PenstockError(
        f"{weight.numbers.name} is streamed from flash, so it has no address and no gradients; take its clone()"
    )


_DETACH = torch.Tensor.detach
_COMPATIBLE = torch._has_compatible_shallow_copy_type
_SPECIAL: dict[Any, Function] = {
    **dict.fromkeys(REFUSED, _refuse),
    **dict.fromkeys((_DETACH, torch.detach, torch.Tensor.data.__get__), _detach),  # type: ignore[attr-defined]
    torch.Tensor.data.__set__: _set_data,  # type: ignore[attr-defined]
    torch.Tensor.detach_: lambda weight: weight,
    torch.Tensor.to: _to,
    _COMPATIBLE: _compatible,
    torch.Tensor.set_: _set,
    torch.Tensor.requires_grad_: _set_gradients,
    torch.Tensor.requires_grad.__set__: _set_gradients,  # type: ignore[attr-defined]
    torch.Tensor.grad.__set__: _set_gradient,  # type: ignore[union-attr]
    torch.Tensor.__deepcopy__: _deep_copy,
    torch.Tensor.__reduce_ex__: lambda weight, protocol: copied(weight).__reduce_ex__(protocol),
    torch.Tensor.__iter__: lambda weight: iter(weight.unbind(0)),
}
"""Functions that are not simply computed on the numbers."""
