"""Text of others, for a terminal."""

_COMMANDS = dict.fromkeys(each for each in (*range(32), *range(127, 160)) if chr(each) not in "\n\t")


def harmless(text: str) -> str:
    """``text`` without what a terminal takes for commands."""
    return text.translate(_COMMANDS)
