"""The class of a model whose weights live in a bundle."""

import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

import torch

from ...tiering.errors import ConfigError, PenstockError
from ..modules.deferring import deferral
from ..prefixes.prefill import prefill_with_prefixes
from .casting import PLACED, cast
from .several_rows import warn_of_drafts

if TYPE_CHECKING:
    from ..kv.adapter import PagedKV


def _names(device: torch.device, own: torch.device) -> bool:
    """Whether ``device`` means ``own``; it may have no index."""
    return device.type == own.type and (None in (device.index, own.index) or device.index == own.index)


def _adding(add: Callable[..., Any]) -> Callable[..., Any]:
    """``add``, a method of transformers that adds an adapter and notes it before it is there: not if it fails."""

    @wraps(add)
    def added(self: Any, *args: Any, **kwargs: Any) -> Any:
        loaded, known = self._hf_peft_config_loaded, {*getattr(self, "peft_config", ())}
        try:
            return add(self, *args, **kwargs)
        except BaseException:
            self._hf_peft_config_loaded = loaded
            for name in {*getattr(self, "peft_config", ())} - known:
                del self.peft_config[name]
            raise

    return added


def _enter(self: Any) -> Any:
    return self


def _leave(self: Any, *_: object) -> None:
    self.penstock.close()


def _to(self: Any, *args: Any, **kwargs: Any) -> Any:
    device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    if (device is None or _names(device, self.device)) and dtype in (None, self.dtype):
        if dtype is not None:
            cast(self, dtype)
        return self
    raise ConfigError(PLACED)


def _apply(self: Any, fn: Callable[[torch.Tensor], torch.Tensor], *_: Any, **__: Any) -> Any:
    for dtype in {self.dtype, torch.float32, torch.float16, torch.bfloat16}:
        found: Any = fn(torch.empty(0, dtype=dtype, device=self.device))
        kept = found.dtype == dtype and found.device == self.device
        if not kept or (found.device.type == "cpu" and found.is_shared()):
            raise ConfigError(PLACED)
    return self  # it changes nothing


def _refuse_copy(self: Any, *_: Any, **__: Any) -> Any:
    raise PenstockError(
        f"a model whose weights live in {self.penstock.bundle} cannot be copied or pickled; load it again"
    )


def _state_methods(base: type[Any]) -> dict[str, Any]:
    """Methods that save and load weights."""

    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> None:
        if not getattr(self, "_hf_peft_config_loaded", False):
            raise PenstockError(
                f"the weights of this model live in {self.penstock.bundle} and are not in memory as a whole; "
                "use the checkpoint it was packed from"
            )
        base.save_pretrained(self, *args, **kwargs)  # only the adapter

    def load_state_dict(self: Any, *args: Any, **kwargs: Any) -> Any:
        copies = self.penstock.copies
        copies.refused = None
        try:
            return base.load_state_dict(self, *args, **kwargs)
        except RuntimeError as error:  # torch puts other errors into the text of its own
            raise copies.refused or error from None

    return {"save_pretrained": save_pretrained, "load_state_dict": load_state_dict}


def _generation_methods(base: type[Any]) -> dict[str, Any]:
    """What ``generate`` of transformers calls, by name, as far as ``base`` has it."""

    def prepare_cache(self: Any, config: Any, kwargs: dict[str, Any], *args: Any, **named: Any) -> None:
        base._prepare_cache_for_generation(self, config, kwargs, *args, **named)
        paged: PagedKV | None = self.penstock.paged
        if paged is not None and paged.should_replace(kwargs.get("past_key_values")):
            kwargs["past_key_values"] = paged.new_cache()
            if config.is_assistant:
                kwargs["past_key_values"].activate_past_recording()

    def prefill(
        self: Any, input_ids: torch.Tensor, config: Any, kwargs: dict[str, Any], is_first_iteration: bool = True
    ) -> Any:
        transformers_own = partial(base._prefill, self, input_ids, config, kwargs, is_first_iteration)
        whole = is_first_iteration and config.prefill_chunk_size is None
        if not whole or not self.penstock.keeps(input_ids, kwargs):
            return transformers_own()

        cache = kwargs["past_key_values"]

        def finish(seen: Any) -> Any:
            """Compute the rest of the prompt on the cache as ``seen`` by it."""
            kwargs["past_key_values"] = seen
            try:
                out = transformers_own()
            finally:
                kwargs["past_key_values"] = cache
            out.past_key_values = cache
            self.penstock.synchronize()  # prefixes are told how long it took
            return out

        return prefill_with_prefixes(self.penstock.prefixes, self, input_ids, cache, finish)

    def prepare_inputs(self: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        put_off = deferral.get()
        if put_off is not None and kwargs.get("next_sequence_length") == 1 and not kwargs.get("is_first_iteration"):
            kwargs["next_sequence_length"] = put_off.begin(input_ids)
        return base.prepare_inputs_for_generation(self, input_ids, *args, **kwargs)

    def assisted_decoding(self: Any, *args: Any, **kwargs: Any) -> Any:
        warn_of_drafts(self)
        return base._assisted_decoding(self, *args, **kwargs)

    methods: dict[str, Any] = {"_prepare_cache_for_generation": prepare_cache, "_prefill": prefill}
    methods |= {"_assisted_decoding": assisted_decoding, "prepare_inputs_for_generation": prepare_inputs}
    return {name: method for name, method in methods.items() if hasattr(base, name)}


def streamed_class(base: type[Any]) -> type[Any]:
    """Derive a class from ``base``: a context manager that closes its model, and refuses what needs all weights in
    memory at once."""
    methods: dict[str, Any] = {"__enter__": _enter, "__exit__": _leave, "to": _to, "_apply": _apply}
    methods |= {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": inspect.getdoc(base)}
    methods |= dict.fromkeys(("__deepcopy__", "__copy__", "__reduce_ex__"), _refuse_copy)
    methods |= {name: _adding(getattr(base, name)) for name in ("add_adapter", "load_adapter") if hasattr(base, name)}
    return type(base.__name__, (base,), methods | _state_methods(base) | _generation_methods(base))
