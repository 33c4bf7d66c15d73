"""``penstock.plan``: the same report as the command's, as values."""

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

import penstock

DESIGNED = {
    "fits",
    "tokens_per_second",
    "time_to_first_token_s",
    "flash_bytes_per_token",
    "hit_ratio",
    "limited_by",
    "minimum_host_memory",
}
"""What every plan says, whoever asks."""


@pytest.mark.usefixtures("elsewhere", "quick")
def test_plan_says_what_the_command_says(ask, checkpoint: Path):
    for settings in ({}, {"host_memory": "300KiB"}, {"host_memory": "1000B"}):
        found = penstock.plan(checkpoint, prompt_tokens=100, context=64, **settings)
        options = [text for name, value in settings.items() for text in (f"--{name.replace('_', '-')}", value)]
        said = ask("plan", checkpoint, "--prompt-tokens", 100, "--context", 64, *options)
        made = found.to_dict()
        for each in (said, made):
            each.pop("flash_free")  # others write to this drive, too
        assert made == said
        assert said.keys() >= DESIGNED
        assert {name: getattr(found, name) for name in DESIGNED} == {name: said[name] for name in DESIGNED}
    with pytest.raises(FrozenInstanceError):
        found.fits = True
    with pytest.raises(penstock.ConfigError, match='did you mean "host_memory"'):
        penstock.plan(checkpoint, host_memry="1GiB")
