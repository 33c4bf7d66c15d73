"""Hostile and damaged files: changes to files as an attacker makes them, and what must come of each."""
