"""Records a routing trace through hooks on a model's routers and experts, for any architecture.

The experts of a token are those that transformers' experts interface is called with. The router is the module beside
the experts that guesses are made with (runtime/routing/router.py). Of its output, the first matrix with a column for
each expert is taken: as probabilities if every row adds up to one, else as scores, and their softmax is taken. A family
that sorts its experts by something else (a bias, groups, a sigmoid) has at least the same order of probabilities. It
works on models of transformers and of penstock.
"""

import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ...kernels.closing import Stopping
from ...tiering.errors import TraceError
from ..checkpoints.modules import is_experts
from .routed import RoutedLayer, encode, narrow
from .router import router_of
from .routes import Routes


class RoutingRecording(Stopping):
    """Records every forward of a model from the moment it is made until ``stop``, or the end of a ``with``.

    Threads are kept apart: each has its own sequences, one at a time.
    """

    def __init__(self, model: nn.Module, text: str = "") -> None:
        """``text`` names the text. Raises TraceError for a model without experts."""
        self._layers = experts_of(model)
        if not self._layers:
            raise TraceError("this model has no experts: there is no routing to record")
        config = getattr(model, "config", None)
        self._model_type, self._text = str(getattr(config, "model_type", "")), text
        self._signature = inspect.signature(model.forward)
        self._sequences: list[list[_Forward]] = []
        self._local = threading.local()
        self._hooks: list[Any] = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end),
        ]
        modules = dict(model.named_modules())
        for path in self._layers:
            self._watch(path, modules[path], router_of(model, path))

    def stop(self) -> None:
        """End the recording. Idempotent."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def routes(self) -> Routes:
        """The routing trace until now. Raises TraceError if nothing was recorded."""
        sequences = [list(forwards) for forwards in self._sequences if forwards]
        forwards = [forward for sequence in sequences for forward in sequence]
        if not forwards:
            raise TraceError("nothing was recorded: the model has not run since")
        return Routes(
            model_type=self._model_type,
            text=self._text,
            layers=tuple(_joined(path, experts, forwards) for path, experts in self._layers.items()),
            forwards=tuple(forward.tokens for forward in forwards),
            sequences=tuple(sum(forward.tokens for forward in sequence) for sequence in sequences),
        )

    # --- hooks ------------------------------------------------------------------------------------------------------

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = self._signature.bind_partial(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        ids = given.get("input_ids")
        rows, tokens = (ids if ids is not None else given["inputs_embeds"]).shape[:2]
        if rows != 1:
            raise TraceError(
                f"a routing trace is of one sequence at a time, not of {rows} side by side; run them singly"
            )
        cache = given.get("past_key_values")
        fresh = cache is None or not cache.get_seq_length()
        self._local.forward = _Forward(tokens, fresh)

    def _end(self, *_: Any) -> None:
        forward: _Forward = self._local.forward
        for path in self._layers:
            seen = sum(map(len, forward.chosen.get(path, ())))
            if seen != forward.tokens:
                raise TraceError(
                    f"{path} was given {seen} of {forward.tokens} tokens: such a model's routing cannot be recorded"
                )
        if forward.fresh or not hasattr(self._local, "sequence"):
            self._local.sequence = []
            self._sequences.append(self._local.sequence)
        self._local.sequence.append(forward)

    def _watch(self, path: str, experts: nn.Module, router: nn.Module | None) -> None:
        count = self._layers[path]

        def chose(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            index = args[1] if len(args) > 1 else kwargs["top_k_index"]
            self._local.forward.chosen.setdefault(path, []).append(narrow(index.clamp(max=count).cpu().numpy(), count))

        def scored(_: nn.Module, __: Any, output: Any) -> None:
            probabilities = probabilities_in(output, count)
            if probabilities is not None:
                self._local.forward.codes.setdefault(path, []).append(encode(probabilities))

        self._hooks.append(experts.register_forward_pre_hook(chose, with_kwargs=True))
        if router is not None:
            self._hooks.append(router.register_forward_hook(scored))


class _Forward:
    """One forward of ``tokens`` tokens; ``fresh`` where it begins a sequence."""

    def __init__(self, tokens: int, fresh: bool) -> None:
        self.tokens, self.fresh = tokens, fresh
        self.chosen: dict[str, list[npt.NDArray[Any]]] = {}
        self.codes: dict[str, list[npt.NDArray[np.uint8]]] = {}


def experts_of(model: nn.Module) -> dict[str, int]:
    """The number of experts of each experts module, by path."""
    return {path: cast(Any, module).num_experts for path, module in model.named_modules() if is_experts(module)}


def probabilities_in(output: Any, experts: int) -> npt.NDArray[np.float32] | None:
    """The probabilities [tokens, experts] in a router's ``output``, or None."""
    for tensor in output if isinstance(output, tuple | list) else (output,):
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.shape[-1:] == (experts,):
            scores = tensor.detach().reshape(-1, experts).float()
            adds_up = bool((scores >= 0).all()) and bool(((scores.sum(-1) - 1).abs() < 0.02).all())
            return (scores if adds_up else scores.softmax(-1)).cpu().numpy()
    return None


def _joined(path: str, experts: int, forwards: Sequence[_Forward]) -> RoutedLayer:
    chosen = [part for forward in forwards for part in forward.chosen[path]]
    codes = [part for forward in forwards for part in forward.codes.get(path, ())]
    complete = sum(map(len, codes)) == sum(map(len, chosen))
    return RoutedLayer(path, experts, np.concatenate(chosen), np.concatenate(codes) if complete else None)


def profile(
    model: nn.Module,
    ids: Sequence[int],
    *,
    window: int,
    text: str = "",
    first: Sequence[int] = (),
    advance: Callable[[int], None] = lambda tokens: None,
) -> Routes:
    """The routing trace of the tokens ``ids``, of a text called ``text``. They go through ``model`` in sequences of
    ``window`` tokens, each in a single forward: routing does not depend on later tokens, so it is that of decoding.
    Every sequence begins with the tokens ``first``. ``advance`` is told how many tokens are done.

    Raises TraceError for a model without experts, or no tokens.
    """
    size = window - len(first)
    # The logits of all tokens would be larger than all else, and are not used.
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    device = cast(Any, model).device
    with RoutingRecording(model, text) as recording, torch.no_grad():
        for start in range(0, len(ids), size):
            part = ids[start : start + size]
            model(torch.tensor([[*first, *part]], device=device), use_cache=False, **last_only)
            advance(len(part))
        return recording.routes()
