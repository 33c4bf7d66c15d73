"""The formats that settings ask for. Where they leave it open, the faster of the two that keep every bit."""

import functools
from pathlib import Path

from ...kernels.formats.lossless import measure_decoding
from ..config.settings import Weights
from ..machine.drive_speeds import drive_rates
from .arrange.arrange import ENCODED
from .arrange.formats import AS_IS, Rules

_BESIDES = 2.0
"""Cores decode and multiply: decoding alone must be this many times faster than the drive."""


@functools.cache
def exact_format(store: Path) -> str:
    """ "lossless" where this machine decodes faster than the drive of ``store`` delivers, else "as-is".

    Raises ConfigError when the drive cannot be measured.
    """
    drive = max(rate.bytes_per_second for rate in drive_rates(store))
    return "lossless" if measure_decoding() >= _BESIDES * drive / ENCODED else AS_IS


def choose_rules(weights: Weights, store: Path) -> Rules:
    """The format of each part of a model, by the settings ``weights``, for a bundle in ``store``.

    Raises ConfigError where "auto" needs the store's drive measured, and that cannot be.
    """
    formats: dict[str, str] = weights.model_dump(exclude={"quality"})
    given = {part: name for part, name in formats.items() if name != "auto"}
    return Rules(**{"format": given.get("format") or exact_format(store)} | given)
