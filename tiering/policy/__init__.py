"""Decisions that can be swapped, each a pure function or class. Imports the top of tiering only."""
