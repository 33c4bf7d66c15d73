"""Checkpoints of every kind, opened, and models described by them. May import config and machine."""
