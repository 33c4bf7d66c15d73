"""Checkpoints of random models, as the ways of writing them differ."""
