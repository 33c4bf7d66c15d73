"""Modules of a transformers model that find their weights in a tier while they run."""
