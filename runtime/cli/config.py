"""``penstock config``: print the configuration in effect."""

from .console import print_json
from .options import Settings


def command(settings: Settings) -> None:
    """Print the configuration in effect, as a commented file that can be saved as penstock.toml."""
    config = settings.load()
    if settings.json:
        print_json(config.model_dump(mode="json"))
    else:
        print(config.to_toml(), end="")
