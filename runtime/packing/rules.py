"""The weight formats that a configuration asks for. "auto" is the faster of those that keep every bit."""

import functools
from pathlib import Path

from ...kernels.formats.lossless import decode_speed
from ..config.config import Config
from ..machine.speeds import drive_rates
from .arrange.arrange import ENCODED
from .arrange.formats import AS_IS, Rules

_BESIDES = 2.0
"""Cores decode and multiply: decoding alone has to be so much faster than the drive."""


@functools.cache
def exact_format(store: Path) -> str:
    """ "lossless" where this machine decodes faster than the drive of ``store`` delivers, else "as-is".

    Raises ConfigError when the drive cannot be measured.
    """
    drive = max(rate.bytes_per_second for rate in drive_rates(store))
    return "lossless" if decode_speed() >= _BESIDES * drive / ENCODED else AS_IS


def rules_of(settings: Config) -> Rules:
    """The format of each part of a model. Raises ConfigError where "auto" needs the store's drive measured, and that
    cannot be."""
    formats: dict[str, str] = settings.weights.model_dump(exclude={"quality"})
    given = {part: name for part, name in formats.items() if name != "auto"}
    return Rules(**{"format": given.get("format") or exact_format(settings.store.path)} | given)
