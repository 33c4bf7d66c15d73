"""What simulated streams compute (pure): the layers of a model, and passes through them with the experts chosen."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..units import BlockId
from .noise import uniform

Routing = Sequence[Sequence[int]]
"""For each layer with experts, in order, the numbers of those that one token uses."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Dense blocks in the order in which a token goes through them, then ``experts``, by number, of which it uses some.

    ``seconds`` is what else a pass computes here.
    """

    dense: tuple[BlockId, ...] = ()
    experts: tuple[BlockId, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward of ``tokens`` tokens, with the ``chosen`` experts of each layer that has some, each once.

    ``choices``: how often the tokens choose an expert in a layer. ``guessed``: what a layer guesses of the next one's;
    empty where nothing is guessed.
    """

    tokens: int
    chosen: Routing = ()
    choices: int = 0
    guessed: Routing = ()


@dataclass(frozen=True, slots=True)
class Workload:
    """``layers``, and for each stream its passes; making a guess takes ``guess_seconds``."""

    layers: Sequence[Layer]
    streams: Sequence[Iterable[Pass]]
    guess_seconds: float = 0.0


def decode(tokens: Iterable[Routing]) -> Iterator[Pass]:
    """A pass for each token."""
    return (forward([token]) for token in tokens)


def forward(tokens: Sequence[Routing]) -> Pass:
    """One pass of all ``tokens``: a prompt, or a step of a batch. A layer's experts come in ascending order."""
    layers = [sorted({expert for layer in found for expert in layer}) for found in zip(*tokens, strict=True)]
    per_token = max((len(layer) for token in tokens for layer in token), default=0)
    return Pass(len(tokens), layers, choices=per_token * len(tokens))


def guessing(passes: Sequence[Pass], experts: int, *, precision: float, seed: int = 0) -> Iterator[Pass]:
    """``passes``, each layer of which guesses as many experts, of ``experts``, as the next one chooses; a share
    ``precision`` of them right. A wrong one is what that layer chooses in some other pass, where there is such a one:
    routers err towards experts that are popular, which are in memory as often as the right ones."""
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
    """Layers of ``blocks`` in the order of use: those of one element of the model's outermost list
    (``model.layers.3``) together, each of the others for itself. Each computes ``seconds`` besides. Residuals belong to
    their experts."""
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
