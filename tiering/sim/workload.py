"""The workload of simulated streams: layers of a model, and passes with their chosen experts (pure)."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..units import BlockId
from .kv import Context
from .noise import uniform

TokenRouting = Sequence[Sequence[int]]
"""Numbers of the experts that one token uses, for each layer with experts, in order."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Dense blocks in the order of use, then ``experts`` by number, of which a token uses some.

    A pass computes ``seconds`` here besides products with weights. ``kv`` are numbers among the layers of the context
    that have KV: those that tokens look at here.
    """

    dense: tuple[BlockId, ...] = ()
    experts: tuple[BlockId, ...] = ()
    seconds: float = 0.0
    kv: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward of ``tokens`` tokens, with the ``chosen`` experts of each layer that has some, each once.

    ``choices`` counts how often the tokens choose an expert in a layer. ``guessed`` has each layer's guess of the next
    layer's experts, and is empty without guesses. A pass that ``attends`` looks at the context, if there is one.
    """

    tokens: int
    chosen: TokenRouting = ()
    choices: int = 0
    guessed: TokenRouting = ()
    attends: bool = True


@dataclass(frozen=True, slots=True)
class Workload:
    """``layers``, and the passes of each stream, which looks at a ``context`` of its own. A guess takes
    ``guess_seconds``."""

    layers: Sequence[Layer]
    streams: Sequence[Iterable[Pass]]
    guess_seconds: float = 0.0
    context: Context | None = None


def decode(tokens: Iterable[TokenRouting]) -> Iterator[Pass]:
    """A pass for each token."""
    return (forward([token]) for token in tokens)


def forward(tokens: Sequence[TokenRouting]) -> Pass:
    """One pass of all ``tokens``: a prompt, or a step of a batch. A layer's experts come in ascending order."""
    layers = [sorted({expert for layer in found for expert in layer}) for found in zip(*tokens, strict=True)]
    per_token = max((len(layer) for token in tokens for layer in token), default=0)
    return Pass(len(tokens), layers, choices=per_token * len(tokens))


def guessing(passes: Sequence[Pass], experts: int, *, precision: float, seed: int = 0) -> Iterator[Pass]:
    """``passes`` with guesses: each layer guesses as many of ``experts`` experts as the next layer chooses.

    The share ``precision`` of guesses is right. A wrong guess is an expert that the layer chooses in another pass, if
    there is one: routers err towards popular experts, which are in memory as often as the right ones.
    """
    for number, each in enumerate(passes):
        guesses: list[list[int]] = []
        for layer, wanted in enumerate(each.chosen[1:], 1):
            others = [expert for expert in range(experts) if expert not in wanted]
            guess = []
            for place, expert in enumerate(wanted):
                if others and uniform(seed, number, layer, place, 0) >= precision:
                    first = int(uniform(seed, number, layer, place, 1) * len(passes))
                    elsewhere = (passes[at % len(passes)].chosen[layer] for at in range(first, first + len(passes)))
                    popular = ([other for other in chosen if other in others] for chosen in elsewhere)
                    found = next(filter(None, popular), others)
                    expert = found[int(uniform(seed, number, layer, place, 2) * len(found))]
                    others.remove(expert)
                guess.append(expert)
            guesses.append(guess)
        yield replace(each, guessed=guesses)


def layers_of(blocks: Iterable[BlockId], seconds: float = 0.0) -> list[Layer]:
    """Layers of ``blocks``, in the order of use.

    Blocks of one element of the model's outermost list (``model.layers.3``) form a layer; every other block is a layer
    of its own. Each layer computes ``seconds`` besides its weights. Residuals belong to their experts.
    """
    found: dict[str, Layer] = {}
    for block in blocks:
        if block.kind == "residual":
            continue
        inside = re.match(r".*?\.\d+(?=\.)", block.module)
        name = inside[0] if inside else str(block)
        layer = found.get(name, Layer(seconds=seconds))
        if block.kind == "expert":
            found[name] = replace(layer, experts=(*layer.experts, block))
        else:
            found[name] = replace(layer, dense=(*layer.dense, block))
    return list(found.values())
