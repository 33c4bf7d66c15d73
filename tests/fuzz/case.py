"""One case: a model, settings, and steps; drawn from a seed, or read from a line of JSON."""

import json
import random
from dataclasses import dataclass, replace
from typing import Any, Self

from .fields import draw, to_json
from .model_spec import ModelSpec
from .settings import Settings
from .steps.step import STEPS, Step

FEWEST, MOST = 2, 6
"""Random steps of a case, without those that look at the model at its end."""
LAST: tuple[tuple[str, dict[str, Any]], ...] = (("Forward", {"rows": 2}), ("Generate", {}))
"""Every case ends with these."""


@dataclass(frozen=True)
class Case:
    """``steps`` happen one after the other to a model of kind ``model``, loaded with ``settings``."""

    model: ModelSpec
    settings: Settings
    steps: tuple[Step, ...]
    seed: int = 0

    @classmethod
    def of(cls, seed: int) -> Self:
        """The case number ``seed``. Each part has dice of its own, so that a new choice changes few cases."""
        model = ModelSpec.draw(random.Random(f"{seed} model"))
        settings = Settings.draw(random.Random(f"{seed} settings"), model)
        dice = random.Random(f"{seed} steps")
        kinds = [*STEPS.values()]
        weights = [kind.weight(settings) for kind in kinds]
        chosen = dice.choices(kinds, weights, k=dice.randint(FEWEST, MOST))
        steps = [draw(kind, dice) for kind in chosen]
        return cls(model, settings, (*steps, *(STEPS[name](**options) for name, options in LAST)), seed)

    @classmethod
    def read(cls, text: str) -> Self:
        """The case that ``str`` wrote."""
        found = json.loads(text)
        steps = tuple(STEPS[name](**options) for name, options in found["steps"])
        return cls(ModelSpec(**found["model"]), Settings(**found["settings"]), steps, found.get("seed", 0))

    def __str__(self) -> str:
        steps = [[type(step).__name__, to_json(step)] for step in self.steps]
        parts = {"model": to_json(self.model), "settings": to_json(self.settings), "steps": steps, "seed": self.seed}
        return json.dumps(parts)

    def without(self, number: int) -> "Case":
        """The case without its step ``number``."""
        return replace(self, steps=self.steps[:number] + self.steps[number + 1 :])
