"""Ages on the command line: "12h", "7d"."""

import re

import typer

_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_age(text: str) -> int:
    """Seconds in "12h"."""
    match = re.fullmatch(r"(\d{1,6})([mhdw])", text.strip())
    if match is None:
        raise typer.BadParameter('it is like "30m", "12h", "7d" or "4w"', param_hint="--older-than")
    return int(match[1]) * _UNITS[match[2]]
