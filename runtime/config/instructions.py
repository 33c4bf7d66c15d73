"""The setting of kernels/isa.py, which is not a part of the configuration: an environment variable for tests."""

import os
import platform

from ...kernels import isa
from ...tiering.errors import ConfigError


def check() -> None:
    """Raise ConfigError if the environment asks for a level of instructions that is unknown here."""
    try:
        isa.allowed(os.environ.get(isa.SETTING), platform.machine())
    except ValueError as error:
        raise ConfigError(error) from None
