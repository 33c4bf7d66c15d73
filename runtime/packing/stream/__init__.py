"""Weights on their way into a bundle: read, converted and encoded, a piece at a time. May import arrange."""
