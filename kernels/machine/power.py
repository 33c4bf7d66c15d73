"""Whether this machine runs on its battery: processors and drives are slower then, as their makers choose."""

import psutil


def is_on_battery() -> bool:
    """Return whether a battery drives this machine now. False without a battery, and where the system does not tell."""
    look = getattr(psutil, "sensors_battery", None)  # not on every system
    try:
        found = None if look is None else look()
    except (OSError, RuntimeError, ValueError):
        return False
    return found is not None and found.power_plugged is False
