"""What a step is: a small dataclass, registered under its name."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from ..settings import Settings
    from ..side import Side

STEPS: dict[str, type["Step"]] = {}
"""All steps, by name."""


@dataclass(frozen=True)
class Step:
    """Something that a user does to a model. Its fields say how; their choices are drawn (tests/fuzz/fields.py).

    A subclass is registered when it is defined, under the name of its class.
    """

    likelihood: ClassVar[int] = 4
    """How often it is drawn, beside the others."""

    def __init_subclass__(cls) -> None:
        STEPS[cls.__name__] = cls

    @classmethod
    def weight(cls, settings: "Settings") -> int:
        """``likelihood`` under these settings."""
        return cls.likelihood

    def run(self, side: "Side") -> Any:
        """Do it to ``side``. Returns what the user sees of it: tensors, numbers, texts, in lists and dictionaries; not
        the order of memory, times and addresses. Where there is nothing to do it to, it does nothing."""
        raise NotImplementedError

    def after_refusal(self, ours: "Side", theirs: "Side") -> str:
        """What the user does when Penstock has refused the step. Returns what is wrong with the model then."""
        return ""
