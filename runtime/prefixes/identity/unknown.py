"""The reason why a model cannot be described."""


class Undescribed(Exception):
    """Something may change keys and values, and nobody can say how. The text names it."""
