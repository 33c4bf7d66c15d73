"""Stored prefixes: their files, the index, the quota. Imports tiering/prefix for decisions."""
